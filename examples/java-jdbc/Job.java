import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import javax.sql.DataSource;

/** A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own. */
class Job {
    private static final System.Logger LOG = System.getLogger("job");

    /**
     * Calls work with every active tenant; returns those that failed. One that fails does not stop the others.
     *
     * @param office connects as an operator, who may list the tenants
     * @param pool connects as the application, which may act for them
     */
    static List<UUID> forEachTenant(DataSource office, DataSource pool, Tenant.Work work) throws Exception {
        var tenants = new ArrayList<UUID>();
        try (var db = office.getConnection();
                var list = db.createStatement();
                var rows = list.executeQuery("SELECT tenant_list()")) {
            while (rows.next()) tenants.add(rows.getObject(1, UUID.class));
        }
        var failed = new ArrayList<UUID>();
        for (var tenant : tenants) {
            try {
                Tenant.actFor(pool, tenant, work);
            } catch (Exception error) {
                if (error instanceof Tenant.NotYours && !isActive(office, tenant)) {
                    LOG.log(System.Logger.Level.INFO, "tenant " + tenant + " was suspended or deleted meanwhile", error);
                    continue;
                }
                LOG.log(System.Logger.Level.ERROR, "tenant " + tenant + " failed", error);
                failed.add(tenant);
            }
        }
        return failed;
    }

    /** Tells a tenant that is over from one that the role may not act for, which is a failure. */
    private static boolean isActive(DataSource office, UUID tenant) throws SQLException {
        try (var db = office.getConnection(); var ask = db.prepareStatement("SELECT ? IN (SELECT tenant_list())")) {
            ask.setObject(1, tenant);
            try (var row = ask.executeQuery()) {
                row.next();
                return row.getBoolean(1);
            }
        }
    }

    static boolean deleteOldOrders(Tenant tenant) throws Exception {
        try (var delete = tenant.db().createStatement()) {
            // No WHERE tenant_id: the server adds it.
            delete.execute("DELETE FROM orders WHERE created_at < now() - interval '1 year'");
        }
        return true;
    }
}
