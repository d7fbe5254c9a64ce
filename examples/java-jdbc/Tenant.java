import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpHandler;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import javax.sql.DataSource;
import org.postgresql.util.PSQLException;

/**
 * The tenant of a request or job, for JDBC and com.sun.net.httpserver. Copy this file.
 *
 * <p>With {@code server.createContext("/orders", Tenant.of(pool, orders))} each request is one transaction of the tenant that
 * X-Tenant-ID names. It ends before the answer leaves: COMMIT if the status is below 400, else ROLLBACK.
 *
 * @param db in the transaction; the pool closes this object when it has ended
 * @param context tenant_context(): tenantId, plan, status, features, settings, …
 */
record Tenant(Connection db, JsonObject context) {
    private static final String UUID_TEXT = "\\p{XDigit}{8}(-\\p{XDigit}{4}){3}-\\p{XDigit}{12}";

    record Answer(int status, Object body) {}

    interface Handler {
        Answer answer(HttpExchange request, Tenant tenant) throws Exception;
    }

    interface Work {
        boolean run(Tenant tenant) throws Exception; // whether to commit
    }

    /** What set_tenant refuses: the tenant is unknown, not granted to the role, suspended or deleted. */
    static class NotYours extends Exception {
        NotYours(SQLException cause) {
            super(cause);
        }
    }

    /** Runs work in a transaction of a tenant. It is committed if work says so, and rolled back if it throws. */
    static void actFor(DataSource pool, UUID id, Work work) throws Exception {
        try (Connection db = pool.getConnection()) { // without auto-commit; the pool rolls back what was not committed
            try (var set = db.prepareStatement("SELECT set_tenant(?)")) {
                set.setObject(1, id);
                set.execute();
            } catch (SQLException error) {
                throw List.of("42501", "42704", "55000").contains(error.getSQLState()) ? new NotYours(error) : error;
            }
            try (var ask = db.createStatement(); var row = ask.executeQuery("SELECT tenant_context()")) {
                row.next();
                var context = JsonParser.parseString(row.getString(1)).getAsJsonObject();
                if (!work.run(new Tenant(db, context))) return;
                ask.execute("SELECT 1"); // fails if an error was swallowed: COMMIT would roll back, and say nothing
            }
            db.commit();
        }
    }

    /** The middleware. */
    static HttpHandler of(DataSource pool, Handler handler) {
        return request -> {
            var ids = request.getRequestHeaders().getOrDefault("X-Tenant-ID", List.of());
            var answer = new Answer[] {new Answer(400, "X-Tenant-ID must be there once, and be a uuid")};
            try {
                if (ids.size() == 1 && ids.get(0).matches(UUID_TEXT)) {
                    actFor(pool, UUID.fromString(ids.get(0)), tenant -> {
                        answer[0] = handler.answer(request, tenant);
                        return answer[0].status < 400;
                    });
                }
            } catch (Exception error) {
                System.getLogger("tenant").log(System.Logger.Level.WARNING, "tenant " + ids, error);
                answer[0] = refused(request, error);
            }
            byte[] body = new Gson().toJson(answer[0].body).getBytes("UTF-8");
            request.getResponseHeaders().set("Content-Type", "application/json");
            request.sendResponseHeaders(answer[0].status, body.length);
            request.getResponseBody().write(body);
            request.close();
        };
    }

    /** What the server refused, as HTTP. One answer for all reasons of NotYours: nobody finds out which tenants there are. */
    private static Answer refused(HttpExchange request, Exception error) {
        if (error instanceof NotYours) return new Answer(403, "not your tenant");
        if (!(error instanceof PSQLException refusal)) return new Answer(500, "see the log");
        if (!"53400".equals(refusal.getSQLState())) {
            int status = Map.of("42501", 403, "42704", 404, "25006", 503).getOrDefault(refusal.getSQLState(), 500);
            return new Answer(status, status == 500 ? "see the log" : refusal.getServerErrorMessage().getMessage());
        }
        var detail = JsonParser.parseString(refusal.getServerErrorMessage().getDetail()).getAsJsonObject();
        var wait = detail.get("retry_after"); // null where waiting does not help
        if (!wait.isJsonNull()) request.getResponseHeaders().set("Retry-After", wait.getAsString());
        return new Answer(429, detail);
    }
}
