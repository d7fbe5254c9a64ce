import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Map;
import java.util.concurrent.Executors;
import javax.sql.DataSource;

/** Orders of many tenants. The server is where PGHOST, PGPORT and PGDATABASE say. */
class App {
    static Tenant.Answer orders(HttpExchange request, Tenant tenant) throws Exception {
        return switch (request.getRequestMethod()) {
            case "GET" -> list(tenant);
            case "POST" -> create(request, tenant);
            default -> new Tenant.Answer(405, "GET or POST");
        };
    }

    private static Tenant.Answer list(Tenant tenant) throws SQLException {
        var orders = new ArrayList<Object>();
        try (var ask = tenant.db().createStatement();
                var rows = ask.executeQuery("SELECT id, item FROM orders ORDER BY id")) {
            while (rows.next()) orders.add(order(rows));
        }
        return new Tenant.Answer(200, Map.of("settings", tenant.context().get("settings"), "orders", orders));
    }

    private static Tenant.Answer create(HttpExchange request, Tenant tenant) throws Exception {
        var asked = JsonParser.parseReader(new InputStreamReader(request.getRequestBody(), "UTF-8")).getAsJsonObject();
        try (var consume = tenant.db().createStatement()) {
            consume.execute("SELECT * FROM tenant_quota_consume('api_requests')");
        }
        // A client that names another tenant in the body is refused by the server: 42501.
        try (var insert = tenant.db().prepareStatement("INSERT INTO orders (tenant_id, item)"
                + " VALUES (coalesce(?::uuid, required_tenant()), ?) RETURNING id, item")) {
            insert.setString(1, asked.has("tenant_id") ? asked.get("tenant_id").getAsString() : null);
            insert.setString(2, asked.get("item").getAsString());
            try (var made = insert.executeQuery()) {
                made.next();
                return new Tenant.Answer(201, Map.of("settings", tenant.context().get("settings"), "order", order(made)));
            }
        }
    }

    private static Map<String, Object> order(ResultSet row) throws SQLException {
        return Map.of("id", row.getLong("id"), "item", row.getString("item"));
    }

    /** Listens on a port, or any if it is 0. */
    static HttpServer serve(DataSource pool, int port) throws Exception {
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 256);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/orders", Tenant.of(pool, App::orders));
        server.start();
        return server;
    }

    static HikariDataSource pool(String user, int connections) {
        return pool(user, connections, 30_000);
    }

    /** Connections, for which a request waits so many milliseconds. */
    static HikariDataSource pool(String user, int connections, long patience) {
        var environment = System.getenv();
        var config = new HikariConfig();
        config.setJdbcUrl("jdbc:postgresql://" + environment.getOrDefault("PGHOST", "localhost") + ":"
                + environment.getOrDefault("PGPORT", "5432") + "/" + environment.getOrDefault("PGDATABASE", ""));
        config.setUsername(user);
        config.setMaximumPoolSize(connections);
        config.setConnectionTimeout(patience);
        config.setAutoCommit(false);
        return new HikariDataSource(config);
    }

    public static void main(String[] arguments) throws Exception {
        String user = System.getenv().getOrDefault("PGUSER", "shop");
        if (arguments.length > 0 && arguments[0].equals("job")) {
            var failed = Job.forEachTenant(pool("office", 1), pool(user, 1), Job::deleteOldOrders);
            System.exit(failed.isEmpty() ? 0 : 1);
        }
        serve(pool(user, 5), 8000);
    }
}
