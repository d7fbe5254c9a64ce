import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import com.zaxxer.hikari.HikariDataSource;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.junit.AfterClass;
import org.junit.BeforeClass;
import org.junit.Test;

/** Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql. */
public class AppTest {
    private static final UUID PARTNERS = UUID.fromString("aaaaaaaa-0000-4000-8000-000000000001"); // the one of `partner`
    private static final int CONNECTIONS = 5;
    private static final Random RANDOM = new Random();
    private static final Logger ROOT = Logger.getLogger("");

    private static final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private static HikariDataSource office;
    private static HikariDataSource pool;
    private static HttpServer server;

    @BeforeClass
    public static void start() throws Exception {
        ROOT.setLevel(Level.OFF);
        office = App.pool("office", 1);
        pool = App.pool("shop", CONNECTIONS, 120_000); // on a slow machine the last of 200 requests waits for long
        server = App.serve(pool, 0);
        server.createContext("/unruly", Tenant.of(pool, AppTest::unruly));
        server.createContext("/swallows", Tenant.of(pool, AppTest::swallow));
    }

    @AfterClass
    public static void stop() {
        server.stop(0);
        pool.close();
        office.close();
    }

    /** Each answer, that of a failure too, carries the canary that the server gave for this request's transaction. */
    private static Tenant.Answer unruly(HttpExchange request, Tenant tenant) throws Exception {
        var answer = new HashMap<String, Object>();
        answer.put("canary", canary(tenant));
        answer.put("tenant", tenant.context().get("tenantId"));
        try (var insert = tenant.db().prepareStatement("INSERT INTO orders (item) VALUES (?)")) {
            insert.setString(1, canary(tenant));
            insert.execute();
        }
        Thread.sleep(RANDOM.nextInt(20));
        try (var look = tenant.db().createStatement();
                var row = look.executeQuery("SELECT string_agg(DISTINCT item, ','), current_tenant(), pg_backend_pid()"
                        + " FROM orders, pg_sleep(random() / 100)")) {
            row.next();
            answer.put("seen", row.getString(1));
            answer.put("acts_for", row.getString(2));
            answer.put("pid", row.getInt(3));
        }
        // What throws has no body of its own.
        request.getResponseHeaders().set("Answer", new Gson().toJson(answer));
        switch (request.getRequestURI().getQuery()) {
            case "works" -> { }
            case "answers" -> { return new Tenant.Answer(500, answer); }
            case "sql" -> run(tenant, "SELECT 1 / 0");
            case "lost" -> run(tenant, "SELECT pg_terminate_backend(pg_backend_pid())");
            default -> throw new IllegalStateException("on purpose");
        }
        return new Tenant.Answer(200, answer);
    }

    private static String canary(Tenant tenant) {
        return tenant.context().getAsJsonObject("settings").get("canary").getAsString();
    }

    private static Tenant.Answer swallow(HttpExchange request, Tenant tenant) throws Exception {
        run(tenant, "INSERT INTO orders (item) VALUES ('lost')");
        assertThrows(SQLException.class, () -> run(tenant, "SELECT 1 / 0"));
        return new Tenant.Answer(200, "done");
    }

    private static boolean run(Tenant tenant, String sql) throws SQLException {
        try (var statement = tenant.db().createStatement()) {
            statement.execute(sql);
        }
        return true;
    }

    private static void operate(String sql, Object... arguments) throws SQLException {
        try (var db = office.getConnection(); var statement = db.prepareStatement(sql)) {
            for (int at = 0; at < arguments.length; at += 1) statement.setObject(at + 1, arguments[at]);
            statement.execute();
            db.commit();
        }
    }

    /** A tenant, and its canary. */
    private record Made(UUID id, String canary) {}

    private static Made newTenant(String plan) throws SQLException {
        var made = new Made(UUID.randomUUID(), "canary " + UUID.randomUUID());
        operate("SELECT tenant_create(?, ?)", made.id, plan);
        operate("SELECT tenant_setting_set('canary', to_jsonb(?::text), 'tenant', tenant => ?)", made.canary, made.id);
        return made;
    }

    private static HttpRequest request(HttpServer to, String path, String body, Object... ids) {
        var request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + to.getAddress().getPort() + path));
        for (var id : ids) request.header("X-Tenant-ID", id.toString());
        return (body == null ? request.GET() : request.POST(HttpRequest.BodyPublishers.ofString(body))).build();
    }

    private static HttpResponse<String> send(HttpRequest request) throws Exception {
        return client.send(request, HttpResponse.BodyHandlers.ofString());
    }

    private static JsonObject json(HttpResponse<String> answer) {
        return JsonParser.parseString(answer.body()).getAsJsonObject();
    }

    private static HttpResponse<String> order(HttpServer to, UUID tenant, String item) throws Exception {
        return send(request(to, "/orders", "{\"item\": \"" + item + "\"}", tenant));
    }

    private static int status(UUID tenant, String item) throws Exception {
        return order(server, tenant, item).statusCode();
    }

    private static List<String> items(UUID tenant) throws Exception {
        var answer = send(request(server, "/orders", null, tenant));
        assertEquals(200, answer.statusCode());
        var items = new ArrayList<String>();
        for (var order : json(answer).getAsJsonArray("orders")) {
            items.add(order.getAsJsonObject().get("item").getAsString());
        }
        return items;
    }

    @Test
    public void concurrentRequestsNeverMix() throws Exception {
        record Asked(Made tenant, String how) {}
        var tenants = new ArrayList<Made>();
        while (tenants.size() < 20) tenants.add(newTenant("starter"));
        String[] hows = {"works", "works", "works", "works", "works", "answers", "throws", "sql", "lost"};
        var asked = new ArrayList<Asked>();
        while (asked.size() < 200) asked.add(new Asked(tenants.get(asked.size() % 20), hows[RANDOM.nextInt(hows.length)]));
        Collections.shuffle(asked);
        var answers = new ArrayList<CompletableFuture<HttpResponse<String>>>();
        for (var one : asked) {
            var request = request(server, "/unruly?" + one.how, "", one.tenant.id);
            answers.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofString()));
        }
        var worked = new HashMap<UUID, Integer>();
        var pids = new HashSet<Integer>();
        int lost = 0;
        for (int at = 0; at < asked.size(); at += 1) {
            var one = asked.get(at);
            var answer = answers.get(at).get();
            assertEquals(one.how.equals("works") ? 200 : 500, answer.statusCode());
            if (one.how.equals("lost")) lost += 1;
            worked.merge(one.tenant.id, one.how.equals("works") ? 1 : 0, Integer::sum);
            var header = JsonParser.parseString(answer.headers().firstValue("Answer").orElseThrow()).getAsJsonObject();
            boolean hasBody = one.how.equals("works") || one.how.equals("answers");
            var body = hasBody ? json(answer) : header;
            assertEquals(header, body);
            for (String key : List.of("canary", "seen")) assertEquals(one.tenant.canary, body.get(key).getAsString());
            for (String key : List.of("tenant", "acts_for")) {
                assertEquals(one.tenant.id.toString(), body.get(key).getAsString());
            }
            pids.add(body.get("pid").getAsInt());
        }
        assertTrue(pids + " connections", pids.size() <= CONNECTIONS + lost);
        // What worked is there, what failed is not; in the rows and in the gauge that follows them.
        for (var tenant : tenants) {
            assertEquals(Collections.nCopies(worked.get(tenant.id), tenant.canary), items(tenant.id));
            try (var db = office.getConnection();
                    var ask = db.prepareStatement("SELECT coalesce(max(used), 0) FROM tenant_usage"
                            + " WHERE tenant = ? AND resource = 'orders'")) {
                ask.setObject(1, tenant.id);
                var row = ask.executeQuery();
                row.next();
                assertEquals((int) worked.get(tenant.id), row.getInt(1));
            }
        }
        assertEquals("connections in use", 0, pool.getHikariPoolMXBean().getActiveConnections());
    }

    @Test
    public void aCommitThatRollsBackIsNoSuccess() throws Exception {
        var tenant = newTenant("starter").id;
        assertEquals(500, send(request(server, "/swallows", "", tenant)).statusCode());
        assertEquals(List.of(), items(tenant));
    }

    @Test
    public void codeThatGoesOnDoesNotMeetTheNextTenant() throws Exception {
        var tenant = newTenant("starter").id;
        var next = newTenant("starter").id;
        var late = new Tenant[1];
        try (var single = App.pool("shop", 1)) {
            Tenant.actFor(single, tenant, it -> {
                late[0] = it;
                return true;
            });
            Tenant.actFor(single, next, it -> {
                assertThrows(SQLException.class, () -> run(late[0], "INSERT INTO orders (item) VALUES ('late')"));
                return true;
            });
        }
        assertEquals(List.of(), items(next));
    }

    @Test
    public void aRequestWithoutOneGoodTenantIs400() throws Exception {
        var tenant = newTenant("starter");
        assertEquals(201, status(tenant.id, tenant.canary));
        var settings = json(send(request(server, "/orders", null, tenant.id))).getAsJsonObject("settings");
        assertEquals(tenant.canary, settings.get("canary").getAsString());
        for (Object[] ids : new Object[][] {{}, {""}, {"1' OR true"}, {tenant.id, tenant.id}}) {
            assertEquals(400, send(request(server, "/orders", null, ids)).statusCode());
        }
    }

    @Test
    public void aTenantThatItMayNotActForIs403() throws Exception {
        var tenant = newTenant("starter").id;
        assertEquals(201, status(tenant, "a"));
        assertEquals(403, status(UUID.randomUUID(), "a")); // 42704
        operate("SELECT tenant_suspend(?)", tenant);
        assertEquals(403, status(tenant, "a")); // 55000
        operate("SELECT tenant_resume(?)", tenant);
        assertEquals(201, status(tenant, "a"));
        try (var partners = App.pool("partner", 1)) {
            var partner = App.serve(partners, 0);
            assertEquals(201, order(partner, PARTNERS, "a").statusCode());
            assertEquals(403, order(partner, tenant, "a").statusCode()); // 42501
            partner.stop(0);
        }
    }

    @Test
    public void anOrderForAnotherTenantIs403() throws Exception {
        var tenant = newTenant("starter").id;
        var other = newTenant("starter").id;
        for (var of : Map.of(tenant, 201, other, 403).entrySet()) {
            String body = "{\"item\": \"a\", \"tenant_id\": \"" + of.getKey() + "\"}";
            assertEquals((int) of.getValue(), send(request(server, "/orders", body, tenant)).statusCode());
        }
        assertEquals(List.of("a"), items(tenant));
        assertEquals(List.of(), items(other));
    }

    @Test
    public void aUsedUpQuotaIs429() throws Exception {
        var tenant = newTenant("starter").id;
        operate("SELECT tenant_quota_set(?, 'api_requests', 2)", tenant);
        assertEquals(201, status(tenant, "a"));
        assertEquals(201, status(tenant, "a"));
        var answer = order(server, tenant, "a");
        assertEquals(429, answer.statusCode());
        var detail = json(answer);
        assertEquals("api_requests", detail.get("resource").getAsString());
        assertEquals(2, detail.get("quota_limit").getAsInt());
        assertEquals(2, detail.get("used").getAsInt());
        assertEquals(tenant.toString(), detail.get("tenant").getAsString());
        String wait = answer.headers().firstValue("Retry-After").orElseThrow();
        assertEquals(detail.get("retry_after").getAsString(), wait);
        assertTrue(Integer.parseInt(wait) > 0);
    }

    @Test
    public void waitingDoesNotHelpAFullGauge() throws Exception {
        var tenant = newTenant("starter").id;
        operate("SELECT tenant_quota_set(?, 'orders', 1)", tenant);
        assertEquals(201, status(tenant, "a"));
        var answer = order(server, tenant, "b");
        assertEquals(429, answer.statusCode());
        assertEquals("orders", json(answer).get("resource").getAsString());
        assertFalse(answer.headers().firstValue("Retry-After").isPresent());
        assertEquals(List.of("a"), items(tenant));
    }

    @Test
    public void whatThePlanDoesNotHaveIs404() throws Exception {
        var tenant = newTenant("viewer").id;
        assertEquals(404, status(tenant, "a"));
        operate("SELECT tenant_plan_change(?, 'starter')", tenant);
        assertEquals(201, status(tenant, "a"));
    }

    @Test
    public void aFencedTenantReadsAndGets503ForWrites() throws Exception {
        var tenant = newTenant("starter").id;
        assertEquals(201, status(tenant, "a"));
        operate("SELECT tenant_fence(?)", tenant);
        assertEquals(503, status(tenant, "b"));
        assertEquals(List.of("a"), items(tenant));
    }

    @Test
    public void theJobWorksForEveryTenant() throws Exception {
        var tenants = new ArrayList<UUID>();
        while (tenants.size() < 3) {
            var tenant = newTenant("starter").id;
            tenants.add(tenant);
            assertEquals(201, status(tenant, "old"));
            assertEquals(201, status(tenant, "new"));
            Tenant.actFor(pool, tenant,
                    it -> run(it, "UPDATE orders SET created_at = now() - interval '2 years' WHERE item = 'old'"));
        }
        var failed = Job.forEachTenant(office, pool, tenant -> {
            Job.deleteOldOrders(tenant);
            if (tenant.context().get("tenantId").getAsString().equals(tenants.get(1).toString())) {
                throw new IllegalStateException("on purpose");
            }
            return true;
        });
        assertEquals(List.of(tenants.get(1)), failed);
        assertEquals(List.of("new"), items(tenants.get(0)));
        assertEquals(List.of("old", "new"), items(tenants.get(1)));
        assertEquals(List.of(), Job.forEachTenant(office, pool, Job::deleteOldOrders));
        for (var tenant : tenants) assertEquals(List.of("new"), items(tenant));
    }

    @Test
    public void theJobFailsForTenantsThatItsRoleMayNotActFor() throws Exception {
        var tenant = newTenant("starter").id;
        try (var partner = App.pool("partner", 1)) {
            var failed = Job.forEachTenant(office, partner, Job::deleteOldOrders);
            assertTrue(failed.contains(tenant));
            assertFalse(failed.contains(PARTNERS));
        }
    }

    @Test
    public void theJobLeavesOutWhoIsSuspendedMeanwhile() throws Exception {
        var one = newTenant("starter").id;
        var two = newTenant("starter").id;
        var other = Map.of(one, two, two, one);
        var worked = new ArrayList<UUID>();
        var failed = Job.forEachTenant(office, pool, tenant -> {
            var id = UUID.fromString(tenant.context().get("tenantId").getAsString());
            if (other.containsKey(id)) {
                worked.add(id);
                operate("SELECT tenant_suspend(?)", other.get(id));
            }
            return true;
        });
        assertEquals(List.of(), failed);
        assertEquals(1, worked.size());
    }
}
