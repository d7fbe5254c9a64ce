package main

import (
	"context"
	"errors"
	"log"

	"github.com/jackc/pgx/v4/pgxpool"
)

// forEachTenant calls work with every active tenant, each in a transaction of its own; it returns those that failed. One that
// fails does not stop the others. office connects as an operator, who may list the tenants; pool as the application, which
// may act for them.
func forEachTenant(office, pool *pgxpool.Pool, work func(*Tenant) error) (failed []string, err error) {
	var tenants []string
	err = office.QueryRow(context.Background(), "SELECT coalesce(array_agg(t::text), '{}') FROM tenant_list() AS t").Scan(&tenants)
	for _, tenant := range tenants {
		err := ActFor(context.Background(), pool, tenant, work)
		if errors.As(err, &NotYours{}) && !isActive(office, tenant) {
			log.Printf("tenant %s was suspended or deleted meanwhile", tenant)
		} else if err != nil {
			log.Printf("tenant %s failed: %v", tenant, err)
			failed = append(failed, tenant)
		}
	}
	return failed, err
}

// isActive tells a tenant that is over from one that the role may not act for, which is a failure.
func isActive(office *pgxpool.Pool, tenant string) bool {
	var active bool
	err := office.QueryRow(context.Background(), "SELECT $1::uuid IN (SELECT tenant_list())", tenant).Scan(&active)
	return active || err != nil
}

// deleteOldOrders is a nightly job.
func deleteOldOrders(tenant *Tenant) error {
	// No WHERE tenant_id: the server adds it.
	_, err := tenant.Exec(context.Background(), "DELETE FROM orders WHERE created_at < now() - interval '1 year'")
	return err
}
