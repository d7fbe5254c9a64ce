//! What the setting holds and what the functions of the tenant answer.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::{UNKNOWN, current, notes, silence};
use crate::harness::{A, B, Db, Session};

/// Every spelling that the type uuid takes is stored in the one that it prints.
#[test]
fn spellings_are_stored_canonical() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    let bare = A.replace('-', "");
    for spelling in
        [A.to_uppercase(), format!("{{{A}}}"), bare.clone(), format!("{}-{}", &bare[..4], &bare[4..])]
    {
        app.run(&format!("SET app.current_tenant = '{spelling}'"));
        assert_eq!(app.one::<String>("SHOW app.current_tenant"), A, "{spelling}");
        assert_eq!(current(&mut app).as_deref(), Some(A), "{spelling}");
    }
}

/// Text that the type uuid does not take is no tenant either.
#[test]
fn other_text_is_refused() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    for text in [
        "nonsense",
        "0",
        " ",
        &format!(" {A}"),
        &format!("{A} "),
        &format!("{{{A}"),
        &format!("urn:uuid:{A}"),
    ] {
        assert_eq!(app.fails(&format!("SET app.current_tenant = '{text}'")), "22023", "{text}");
        assert_eq!(app.fails(&format!("SELECT '{text}'::uuid")), "22P02", "{text}");
    }
}

/// current_tenant() and its twin answer NULL without a tenant and for one that does not hold; required raises.
#[test]
fn current_is_null_where_required_raises() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!("UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{A}'"));
    let mut app = db.connect(&db.app());
    let answers = |client: &mut postgres::Client, holds: bool| {
        let row = client.rows("SELECT current_tenant()::text, current_tenant_key()").remove(0);
        let expected = (holds.then(|| A.to_string()), holds.then_some(7_i64));
        assert_eq!((row.get(0), row.get(1)), expected);
        for function in ["required_tenant()", "required_tenant_key()", "tenant_context()"] {
            let state = client.attempt(&format!("SELECT {function}"));
            assert_eq!(state.as_deref(), (!holds).then_some("55000"), "{function}");
        }
    };
    answers(&mut app, false);
    app.run(&format!("SET app.current_tenant = '{A}'"));
    answers(&mut app, true);
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    answers(&mut app, false);
    admin.run(&format!("SELECT tenant_resume('{A}')"));
    answers(&mut app, true);
}

/// A tenant without a key has no answer to the bigint functions.
#[test]
fn a_tenant_without_a_key_has_none() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.one::<Option<i64>>("SELECT current_tenant_key()"), None);
    assert_eq!(app.fails("SELECT required_tenant_key()"), "55000");
}

/// tenant_context() is one object with all that a middleware needs.
#[test]
fn the_context_is_one_object() {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "SELECT tenant_create('{UNKNOWN}', plan => 'starter', region => 'eu');
         UPDATE tenant_rls.tenants SET settings = '{{\"theme\": \"dark\"}}' WHERE tenant_id = '{UNKNOWN}'"
    ));
    let mut app = db.connect_as(&db.app(), UNKNOWN);
    let same = format!(
        "SELECT tenant_context() = '{{\"tenantId\": \"{UNKNOWN}\", \"plan\": \"starter\", \"region\": \"eu\",
           \"features\": [], \"featureValues\": {{}}, \"settings\": {{\"theme\": \"dark\"}}, \"status\": \"active\"}}'"
    );
    assert!(app.one::<bool>(&same));
}

/// The prefix app belongs to the user, tenant_rls to the extension.
#[test]
fn only_our_prefix_is_reserved() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    app.run("SET app.something = 'else'");
    assert_eq!(app.one::<String>("SHOW app.something"), "else");
    assert_eq!(app.fails("SET tenant_rls.something = 'else'"), "42602");
}

/// No role of the application can weaken a setting of ours.
#[test]
fn our_settings_are_for_superusers() {
    let db = Db::with_orders();
    let set = "SET tenant_rls.missing_tenant = 'empty'";
    assert_eq!(db.connect(&db.app()).fails(set), "42501");
    db.admin().run(set);
    let weak = "SELECT string_agg(name, ', ') FROM pg_settings WHERE name LIKE 'tenant\\_rls.%' AND context = 'user'";
    assert_eq!(db.admin().one::<Option<String>>(weak), None);
}

/// In a database without the extension the setting takes any text.
#[test]
fn without_the_extension_text_is_text() {
    let db = Db::without_extension();
    let mut admin = db.admin();
    admin.run("SET app.current_tenant = 'anything at all'");
    assert_eq!(admin.one::<String>("SHOW app.current_tenant"), "anything at all");
}

/// CREATE EXTENSION makes the setting mean something in the session that ran it.
#[test]
fn the_extension_arrives_in_an_open_session() {
    let db = Db::without_extension();
    let mut admin = db.admin();
    admin.run("SET app.current_tenant = 'anything at all'");
    admin.run("CREATE EXTENSION tenant_rls");
    assert_eq!(current(&mut admin), None);
    assert_eq!(admin.fails("SET app.current_tenant = 'anything at all'"), "22023");
}

/// RESET goes back to the tenant that the session started with.
#[test]
fn a_reset_returns_to_the_start() {
    let db = Db::with_orders();
    silence(&db);
    for reset in ["RESET app.current_tenant", "RESET ALL", "DISCARD ALL", "SET app.current_tenant TO DEFAULT"]
    {
        let mut app =
            db.try_connect(&db.app(), &format!("-c app.current_tenant={A}")).expect("a good tenant");
        app.run(&format!("SET app.current_tenant = '{B}'"));
        assert_eq!(notes(&mut app), ["b3", "b4"]);
        app.run(reset);
        assert_eq!(notes(&mut app), ["a1", "a2"], "{reset}");
    }
}

/// The client hears of every change of the tenant, and of no refused one.
#[test]
fn the_setting_is_reported() {
    let db = Db::with_orders();
    let statements = [
        format!("SET app.current_tenant = '{A}'"),
        "SET app.current_tenant = 'nonsense'".into(),
        format!("BEGIN; SELECT set_tenant('{B}')"),
        "ROLLBACK".into(),
        "DISCARD ALL".into(),
    ];
    assert_eq!(reported(&db, &db.app(), &statements), ["", A, B, A, ""]);
}

/// What the server reports of the setting, at login and while the statements run one by one. The client
/// library keeps it to itself, so this speaks the protocol.
fn reported(db: &Db, role: &str, statements: &[String]) -> Vec<String> {
    let mut stream = TcpStream::connect(db.address()).expect("the server answers");
    let mut start = 196_608_u32.to_be_bytes().to_vec();
    start.extend(format!("user\0{role}\0database\0{}\0\0", db.name()).bytes());
    send(&mut stream, &[], &start);
    let mut values = Vec::new();
    let mut statements = statements.iter();
    loop {
        let (kind, body) = receive(&mut stream);
        if kind == b'S'
            && let [b"app.current_tenant", value, ..] = body.split(|byte| *byte == 0).collect::<Vec<_>>()[..]
        {
            values.push(String::from_utf8_lossy(value).into_owned());
        } else if kind == b'Z' {
            let Some(statement) = statements.next() else { return values };
            send(&mut stream, b"Q", format!("{statement}\0").as_bytes());
        }
    }
}

fn send(stream: &mut TcpStream, kind: &[u8], body: &[u8]) {
    let length = (body.len() as u32 + 4).to_be_bytes();
    stream.write_all(&[kind, &length, body].concat()).expect("the server listens");
}

fn receive(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).expect("a message");
    let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
    stream.read_exact(&mut body).expect("the rest of the message");
    (head[0], body)
}

/// In a database without an encoding the bytes of a text need not be UTF-8. None of our functions takes such bytes for
/// something else, and the session goes on.
#[test]
fn bytes_that_are_no_text_mean_nothing() {
    let db = Db::in_sql_ascii();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_create('{A}'), tenant_create('{B}')"));
    let app = db.app();
    db.role(&app, "LOGIN");
    admin.run(&format!("SELECT tenant_grant('{app}')"));
    let mut app = db.connect_as(&app, A);
    // A lead byte without what must follow, one that takes the quote for it, an overlong slash, a surrogate, 0xFF.
    for bytes in ["\\xc0", "\\xc0\\x27", "\\xc0\\xaf", "\\xed\\xa0\\x80", "\\xff"] {
        for call in [
            "tenant_quota_consume(E'@')",
            "tenant_quota_consume(E'api_requests@')",
            "tenant_quota_try_consume('api_requests', 1, E'@')",
            "tenant_quota_reserve(E'@', 1, '1 minute')",
            "tenant_feature(E'@')",
            "tenant_setting(E'@')",
            "tenant_cache_get(E'@')",
            "tenant_cache_set(E'@', '1')",
            "tenant_cache_invalidate(E'@*')",
            "set_tenant_ticket(E'@')",
            "set_config('app.current_tenant', E'@', false)",
            "set_config('app.current_tenant', E'bbbbbbbb-0000-4000-8000-00000000000b@', false)",
        ] {
            let call = call.replace('@', bytes);
            app.run(&format!("SET app.current_tenant = '{A}'"));
            // The library takes UTF-8 alone, and says so with XX000 where it is handed something else.
            let refused = app.attempt(&format!("SELECT * FROM {call}"));
            let known = ["22021", "22023", "42501", "42704", "XX000"];
            assert!(refused.is_none_or(|state| known.contains(&state.as_str())), "{call}");
            assert_ne!(current(&mut app).as_deref(), Some(B), "{call}");
        }
    }
}
