package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"os"

	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

// Order is one of many of a tenant.
type Order struct {
	ID   int64  `json:"id"`
	Item string `json:"item"`
}

func listOrders(r *http.Request, tenant *Tenant) (int, any, error) {
	rows, err := tenant.Query(r.Context(), "SELECT id, item FROM orders ORDER BY id")
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	orders := []Order{}
	for rows.Next() {
		var order Order
		if err := rows.Scan(&order.ID, &order.Item); err != nil {
			return 0, nil, err
		}
		orders = append(orders, order)
	}
	return http.StatusOK, map[string]any{"settings": tenant.Context["settings"], "orders": orders}, rows.Err()
}

func createOrder(r *http.Request, tenant *Tenant) (int, any, error) {
	// A client that names another tenant in the body is refused by the server: 42501.
	var asked struct {
		Item     string  `json:"item"`
		TenantID *string `json:"tenant_id"`
	}
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		return http.StatusBadRequest, "the body must be JSON", nil
	}
	if _, err := tenant.Exec(r.Context(), "SELECT * FROM tenant_quota_consume('api_requests')"); err != nil {
		return 0, nil, err
	}
	var made Order
	err := tenant.QueryRow(r.Context(),
		"INSERT INTO orders (tenant_id, item) VALUES (coalesce($1, required_tenant()), $2) RETURNING id, item",
		asked.TenantID, asked.Item).Scan(&made.ID, &made.Item)
	return http.StatusCreated, map[string]any{"settings": tenant.Context["settings"], "order": made}, err
}

func orders(r *http.Request, tenant *Tenant) (int, any, error) {
	switch r.Method {
	case http.MethodGet:
		return listOrders(r, tenant)
	case http.MethodPost:
		return createOrder(r, tenant)
	}
	return http.StatusMethodNotAllowed, "GET or POST", nil
}

func newApp(pool *pgxpool.Pool) *http.ServeMux {
	app := http.NewServeMux()
	app.Handle("/orders", TenantOf(pool, orders))
	return app
}

// newPool connects as user, or PGUSER, to where PGHOST, PGPORT and PGDATABASE say.
func newPool(user string, connections int32) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		log.Fatal(err)
	}
	if user != "" {
		config.ConnConfig.User = user
	}
	config.MaxConns = connections
	// A temporary table that stays would refuse the next tenant.
	config.AfterRelease = func(connection *pgx.Conn) bool {
		_, err := connection.Exec(context.Background(), "DISCARD TEMP")
		return err == nil
	}
	pool, err := pgxpool.ConnectConfig(context.Background(), config)
	if err != nil {
		log.Fatal(err)
	}
	return pool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "job" {
		if failed, err := forEachTenant(newPool("office", 1), newPool("", 1), deleteOldOrders); err != nil || len(failed) > 0 {
			log.Fatal(failed, err)
		}
		return
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:8000", newApp(newPool("", 5))))
}
