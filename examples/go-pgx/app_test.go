package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v4/pgxpool"
)

// Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql.

const (
	partners    = "aaaaaaaa-0000-4000-8000-000000000001" // the one tenant that the role partner may act for
	connections = 5
)

var (
	ctx    = context.Background()
	office = newPool("office", 1)
	pool   = newPool("shop", connections)
	server = serve(pool)
	client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
)

func TestMain(m *testing.M) {
	rand.Seed(time.Now().UnixNano())
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

type object = map[string]any

// unruly writes, looks, and then works or fails. Each answer, that of a failure too, carries the canary that the server gave
// for this request's transaction.
func unruly(r *http.Request, tenant *Tenant) (int, any, error) {
	canary := tenant.Context["settings"].(object)["canary"]
	if _, err := tenant.Exec(r.Context(), "INSERT INTO orders (item) VALUES ($1)", canary); err != nil {
		return 0, nil, err
	}
	time.Sleep(time.Duration(rand.Intn(20)) * time.Millisecond)
	var seen []string
	var actsFor string
	var pid int
	err := tenant.QueryRow(r.Context(), `SELECT array_agg(DISTINCT item), current_tenant()::text, pg_backend_pid()
		FROM orders, pg_sleep(random() / 100)`).Scan(&seen, &actsFor, &pid)
	if err != nil {
		return 0, nil, err
	}
	answer := object{"canary": canary, "tenant": tenant.Context["tenantId"], "seen": seen, "acts_for": actsFor, "pid": pid}
	switch r.URL.Query().Get("how") {
	case "works":
		return http.StatusOK, answer, nil
	case "sql":
		_, err = tenant.Exec(r.Context(), "SELECT 1 / 0")
	case "connection lost":
		_, err = tenant.Exec(r.Context(), "SELECT pg_terminate_backend(pg_backend_pid())")
	case "panics":
		panic(http.ErrAbortHandler)
	default:
		err = io.EOF
	}
	if err == nil {
		return http.StatusOK, "did not fail", nil
	}
	return http.StatusInternalServerError, answer, nil
}

func swallow(r *http.Request, tenant *Tenant) (int, any, error) {
	_, err := tenant.Exec(r.Context(), "INSERT INTO orders (item) VALUES ('lost')")
	tenant.Exec(r.Context(), "SELECT 1 / 0")
	return http.StatusOK, "done", err
}

func serve(pool *pgxpool.Pool) *httptest.Server {
	app := newApp(pool)
	app.Handle("/unruly", TenantOf(pool, unruly))
	app.Handle("/swallows", TenantOf(pool, swallow))
	return httptest.NewServer(app)
}

func operate(t *testing.T, sql string, arguments ...any) {
	t.Helper()
	if _, err := office.Exec(ctx, sql, arguments...); err != nil {
		t.Fatal(err)
	}
}

func newTenant(t *testing.T, plan string) (id, canary string) {
	t.Helper()
	if err := office.QueryRow(ctx, "SELECT tenant_create(plan => $1)::text", plan).Scan(&id); err != nil {
		t.Fatal(err)
	}
	canary = fmt.Sprintf("canary %d", rand.Int63())
	operate(t, "SELECT tenant_setting_set('canary', to_jsonb($1::text), 'tenant', tenant => $2)", canary, id)
	return id, canary
}

// send asks server; the body is decoded into an object if it is one.
func send(server *httptest.Server, method, path string, body any, ids ...string) (answer *http.Response, object object, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	request, err := http.NewRequest(method, server.URL+path, bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	request.Header["X-Tenant-Id"] = ids
	if answer, err = client.Do(request); err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	json.Unmarshal(text, &object)
	return answer, object, err
}

func order(t *testing.T, expected int, server *httptest.Server, tenant string, body object) (*http.Response, object) {
	t.Helper()
	answer, detail, err := send(server, "POST", "/orders", body, tenant)
	if err != nil || answer.StatusCode != expected {
		t.Fatal(answer, detail, err)
	}
	return answer, detail
}

func items(t *testing.T, tenant string) []string {
	t.Helper()
	answer, body, err := send(server, "GET", "/orders", nil, tenant)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer, err)
	}
	items := []string{}
	for _, order := range body["orders"].([]any) {
		items = append(items, order.(object)["item"].(string))
	}
	return items
}

func equal(t *testing.T, seen, expected any) {
	t.Helper()
	if !reflect.DeepEqual(seen, expected) {
		t.Fatalf("%v, not %v", seen, expected)
	}
}

func TestConcurrentRequestsNeverMix(t *testing.T) {
	canaries := map[string]string{}
	var tenants []string
	for len(tenants) < 20 {
		id, canary := newTenant(t, "starter")
		canaries[id], tenants = canary, append(tenants, id)
	}
	hows := []string{"works", "works", "works", "works", "works", "answers", "answers", "sql", "sql", "connection+lost", "panics"}
	var lock sync.Mutex
	var done sync.WaitGroup
	worked, pids, closed := map[string]int{}, map[any]bool{}, 0
	for _, at := range rand.Perm(200) {
		tenant, how := tenants[at%20], hows[rand.Intn(len(hows))]
		done.Add(1)
		go func() {
			defer done.Done()
			answer, body, err := send(server, "POST", "/unruly?how="+how, nil, tenant)
			lock.Lock()
			defer lock.Unlock()
			if how == "panics" || how == "connection+lost" {
				closed++
			}
			if how == "panics" {
				if err == nil {
					t.Error("an answer from a handler that panicked")
				}
				return
			}
			status := http.StatusInternalServerError
			if how == "works" {
				status = http.StatusOK
				worked[tenant]++
			}
			if err != nil || answer.StatusCode != status {
				t.Error(answer, err)
				return
			}
			canary := canaries[tenant]
			expected := object{"canary": canary, "tenant": tenant, "seen": []any{canary}, "acts_for": tenant, "pid": body["pid"]}
			if !reflect.DeepEqual(body, expected) {
				t.Errorf("%v, not %v", body, expected)
			}
			pids[body["pid"]] = true
		}()
	}
	done.Wait()
	if len(pids) > connections+closed {
		t.Errorf("%d connections", len(pids))
	}
	// What worked is there, what failed is not; in the rows and in the gauge that follows them.
	for _, tenant := range tenants {
		expected := []string{}
		for len(expected) < worked[tenant] {
			expected = append(expected, canaries[tenant])
		}
		equal(t, items(t, tenant), expected)
		var used int
		err := office.QueryRow(ctx, `SELECT coalesce(max(used), 0)::int FROM tenant_usage
			WHERE tenant = $1 AND resource = 'orders'`, tenant).Scan(&used)
		if err != nil || used != worked[tenant] {
			t.Fatal(used, err)
		}
	}
	for pool.Stat().AcquiredConns() != 0 { // all are given back, soon
		time.Sleep(time.Millisecond)
	}
}

func TestACommitThatRollsBackIsNoSuccess(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	answer, _, err := send(server, "POST", "/swallows", nil, tenant)
	if err != nil || answer.StatusCode != http.StatusInternalServerError {
		t.Fatal(answer, err)
	}
	equal(t, items(t, tenant), []string{})
}

func TestCodeThatGoesOnDoesNotMeetTheNextTenant(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	next, _ := newTenant(t, "starter")
	single := newPool("shop", 1)
	defer single.Close()
	var late *Tenant
	keep := func(tenant *Tenant) error { late = tenant; return nil }
	if err := ActFor(ctx, single, tenant, keep); err != nil {
		t.Fatal(err)
	}
	err := ActFor(ctx, single, next, func(*Tenant) error {
		defer func() {
			if recover() == nil {
				t.Error("it went on")
			}
		}()
		_, err := late.Exec(ctx, "INSERT INTO orders (item) VALUES ('late')")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, items(t, next), []string{})
}

func TestAClientThatLeavesTakesItsTransactionAlong(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	single := newPool("shop", 1)
	defer single.Close()
	leaving, leave := context.WithCancel(ctx)
	err := ActFor(leaving, single, tenant, func(tenant *Tenant) error {
		if _, err := tenant.Exec(leaving, "INSERT INTO orders (item) VALUES ('left')"); err != nil {
			return err
		}
		time.AfterFunc(20*time.Millisecond, leave)
		_, err := tenant.Exec(leaving, "SELECT pg_sleep(60)")
		return err
	})
	if err == nil {
		t.Fatal("it went on")
	}
	// The pool's only connection is free again, or this would wait for ever.
	if err := ActFor(ctx, single, tenant, deleteOldOrders); err != nil {
		t.Fatal(err)
	}
	equal(t, items(t, tenant), []string{})
}

func TestARequestWithoutOneGoodTenantIs400(t *testing.T) {
	tenant, canary := newTenant(t, "starter")
	order(t, 201, server, tenant, object{"item": canary})
	_, body, _ := send(server, "GET", "/orders", nil, tenant)
	equal(t, body["settings"], object{"canary": canary})
	for _, ids := range [][]string{{}, {""}, {"1' OR true"}, {tenant, tenant}} {
		answer, _, err := send(server, "GET", "/orders", nil, ids...)
		if err != nil || answer.StatusCode != http.StatusBadRequest {
			t.Fatal(ids, answer, err)
		}
	}
}

func TestATenantThatItMayNotActForIs403(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	order(t, 201, server, tenant, object{"item": "a"})
	order(t, 403, server, "dddddddd-0000-4000-8000-00000000000d", object{"item": "a"}) // 42704
	operate(t, "SELECT tenant_suspend($1)", tenant)
	order(t, 403, server, tenant, object{"item": "a"}) // 55000
	operate(t, "SELECT tenant_resume($1)", tenant)
	order(t, 201, server, tenant, object{"item": "a"})

	partner := serve(newPool("partner", 1))
	defer partner.Close()
	order(t, 201, partner, partners, object{"item": "a"})
	order(t, 403, partner, tenant, object{"item": "a"}) // 42501
}

func TestAnOrderForAnotherTenantIs403(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	other, _ := newTenant(t, "starter")
	order(t, 201, server, tenant, object{"item": "a", "tenant_id": tenant})
	order(t, 403, server, tenant, object{"item": "b", "tenant_id": other})
	equal(t, items(t, tenant), []string{"a"})
	equal(t, items(t, other), []string{})
}

func TestAUsedUpQuotaIs429(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	operate(t, "SELECT tenant_quota_set($1, 'api_requests', 2)", tenant)
	order(t, 201, server, tenant, object{"item": "a"})
	order(t, 201, server, tenant, object{"item": "a"})
	answer, detail := order(t, 429, server, tenant, object{"item": "a"})
	equal(t, []any{detail["resource"], detail["quota_limit"], detail["used"], detail["tenant"]}, []any{"api_requests", 2.0, 2.0, tenant})
	wait, err := strconv.ParseFloat(answer.Header.Get("Retry-After"), 64)
	if err != nil || wait <= 0 || wait != detail["retry_after"] {
		t.Fatal(wait, detail, err)
	}
}

func TestWaitingDoesNotHelpAFullGauge(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	operate(t, "SELECT tenant_quota_set($1, 'orders', 1)", tenant)
	order(t, 201, server, tenant, object{"item": "a"})
	answer, detail := order(t, 429, server, tenant, object{"item": "b"})
	equal(t, detail["resource"], "orders")
	equal(t, answer.Header.Values("Retry-After"), []string(nil))
	equal(t, items(t, tenant), []string{"a"})
}

func TestWhatThePlanDoesNotHaveIs404(t *testing.T) {
	tenant, _ := newTenant(t, "viewer")
	order(t, 404, server, tenant, object{"item": "a"})
	operate(t, "SELECT tenant_plan_change($1, 'starter')", tenant)
	order(t, 201, server, tenant, object{"item": "a"})
}

func TestAFencedTenantReadsAndGets503ForWrites(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	order(t, 201, server, tenant, object{"item": "a"})
	operate(t, "SELECT tenant_fence($1)", tenant)
	order(t, 503, server, tenant, object{"item": "b"})
	equal(t, items(t, tenant), []string{"a"})
}

func TestTheJobWorksForEveryTenant(t *testing.T) {
	var tenants []string
	for len(tenants) < 3 {
		tenant, _ := newTenant(t, "starter")
		tenants = append(tenants, tenant)
		order(t, 201, server, tenant, object{"item": "old"})
		order(t, 201, server, tenant, object{"item": "new"})
		err := ActFor(ctx, pool, tenant, func(tenant *Tenant) error {
			_, err := tenant.Exec(ctx, "UPDATE orders SET created_at = now() - interval '2 years' WHERE item = 'old'")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	failed, err := forEachTenant(office, pool, func(tenant *Tenant) error {
		if err := deleteOldOrders(tenant); err != nil || tenant.Context["tenantId"] != tenants[1] {
			return err
		}
		return fmt.Errorf("on purpose")
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, failed, []string{tenants[1]})
	equal(t, [][]string{items(t, tenants[0]), items(t, tenants[1])}, [][]string{{"new"}, {"old", "new"}})
	failed, err = forEachTenant(office, pool, deleteOldOrders)
	if err != nil || len(failed) > 0 {
		t.Fatal(failed, err)
	}
	for _, tenant := range tenants {
		equal(t, items(t, tenant), []string{"new"})
	}
}

func TestTheJobFailsForTenantsThatItsRoleMayNotActFor(t *testing.T) {
	tenant, _ := newTenant(t, "starter")
	partner := newPool("partner", 1)
	defer partner.Close()
	failed, err := forEachTenant(office, partner, deleteOldOrders)
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, id := range failed {
		has[id] = true
	}
	equal(t, []bool{has[tenant], has[partners]}, []bool{true, false})
}

func TestTheJobLeavesOutWhoIsSuspendedMeanwhile(t *testing.T) {
	one, _ := newTenant(t, "starter")
	two, _ := newTenant(t, "starter")
	other, worked := map[any]string{one: two, two: one}, 0
	failed, err := forEachTenant(office, pool, func(tenant *Tenant) error {
		if suspend, is := other[tenant.Context["tenantId"]]; is {
			worked++
			operate(t, "SELECT tenant_suspend($1)", suspend)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, append(failed, strconv.Itoa(worked)), []string{"1"})
}
