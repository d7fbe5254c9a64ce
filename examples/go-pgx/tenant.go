// The tenant of a request, for net/http and pgx 4. Copy this file.
//
// With http.Handle("/orders", TenantOf(pool, orders)) each request is one transaction of the tenant that X-Tenant-ID
// names. It ends before the answer leaves: COMMIT if the status is below 400, else ROLLBACK.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"regexp"
	"strconv"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var uuid = regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Tenant is the transaction of a request or job, with tenant_context(). After its end there is no Tx.
type Tenant struct {
	pgx.Tx
	Context map[string]any
}

// NotYours is what set_tenant refuses: the tenant is unknown, not granted to the role, suspended or deleted.
type NotYours struct{ error }

// ActFor runs work in a transaction of a tenant: COMMIT, or ROLLBACK if it fails or panics.
func ActFor(ctx context.Context, pool *pgxpool.Pool, id string, work func(*Tenant) error) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	tenant := &Tenant{Tx: tx}
	end := func() { tenant.Tx = nil }                           // pgx lets code that goes on meet the next tenant on the same connection
	defer func() { end(); tx.Rollback(context.Background()) }() // clients that leave, panics; nothing after COMMIT
	var refusal *pgconn.PgError
	_, err = tx.Exec(ctx, "SELECT set_tenant($1)", id)
	if errors.As(err, &refusal) && (refusal.Code == "42501" || refusal.Code == "42704" || refusal.Code == "55000") {
		return NotYours{err}
	}
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT tenant_context()").Scan(&tenant.Context)
	}
	if err == nil {
		err = work(tenant)
	}
	if end(); err == nil {
		err = tx.Commit(ctx) // pgx.ErrTxCommitRollback if an error was swallowed
	}
	return err
}

var errRollBack = errors.New("the handler has answered with an error")

// TenantOf is the middleware.
func TenantOf(pool *pgxpool.Pool, handler func(*http.Request, *Tenant) (int, any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, body := http.StatusBadRequest, any("X-Tenant-ID must be there once, and be a uuid")
		if ids := r.Header.Values("X-Tenant-ID"); len(ids) == 1 && uuid.MatchString(ids[0]) {
			err := ActFor(r.Context(), pool, ids[0], func(tenant *Tenant) (err error) {
				if status, body, err = handler(r, tenant); err == nil && status >= 400 {
					err = errRollBack
				}
				return err
			})
			if err != nil && err != errRollBack {
				log.Printf("%s %s: tenant %s: %v", r.Method, r.URL.Path, ids[0], err)
				status, body = refused(w.Header(), err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(body)
	})
}

// refused is what the server refused, as HTTP.
func refused(header http.Header, err error) (status int, body any) {
	refusal := new(pgconn.PgError)
	if _, is := err.(NotYours); is { // one answer for all reasons: nobody finds out which tenants there are
		return http.StatusForbidden, "not your tenant"
	} else if errors.As(err, &refusal) && refusal.Code == "53400" {
		var detail map[string]any
		json.Unmarshal([]byte(refusal.Detail), &detail)
		if wait, is := detail["retry_after"].(float64); is { // null where waiting does not help
			header.Set("Retry-After", strconv.Itoa(int(wait)))
		}
		return http.StatusTooManyRequests, json.RawMessage(refusal.Detail)
	} else if status, is := map[string]int{"42501": 403, "42704": 404, "25006": 503}[refusal.Code]; is {
		return status, refusal.Message
	}
	return http.StatusInternalServerError, "see the log"
}
