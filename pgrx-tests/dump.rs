//! Dump and restore, pg_upgrade and DROP EXTENSION, with the programs that people use.

mod behaviour;
mod fixture;
mod place;
mod removal;
mod state;

use std::process::Output;

use crate::cluster::{Cluster, command};
use crate::harness::{A, Session, program, skipped};

use behaviour::{assert_absent_role_has_nothing, assert_behaves};
use fixture::{Original, ident, regrole};
use place::{Place, Programs, Scratch};
use state::state;

const PRELOADED: &str = "shared_preload_libraries = 'tenant_rls'";

/// A database of the test server that has what the original has.
fn assert_restored(original: &Original, copy: &Place) {
    original.state.assert_same(&state(copy));
    assert_behaves(copy, &original.roles);
}

#[test]
fn a_plain_dump_restores() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump.sql");
    programs.dump(&original.place, &["--format=plain"], &file);
    let copy = Place::new("public");
    assert_eq!(programs.restore_plain(&file, &copy), "");
    assert_restored(&original, &copy);
}

#[test]
fn a_custom_dump_restores() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump");
    programs.dump(&original.place, &["--format=custom"], &file);
    let copy = Place::new("public");
    assert_eq!(programs.restore(&file, &copy, &["--exit-on-error"]), "");
    assert_restored(&original, &copy);
}

#[test]
fn a_dump_restores_in_parallel() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump");
    programs.dump(&original.place, &["--format=directory", "--jobs=2"], &file);
    let copy = Place::new("public");
    assert_eq!(programs.restore(&file, &copy, &["--exit-on-error", "--jobs=2"]), "");
    assert_restored(&original, &copy);
}

#[test]
fn a_dump_of_inserts_restores() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump.sql");
    programs.dump(&original.place, &["--inserts"], &file);
    let copy = Place::new("public");
    assert_eq!(programs.restore_plain(&file, &copy), "");
    original.state.assert_same(&state(&copy));
}

/// The event triggers are there while their tables and the extension are dropped.
#[test]
fn a_clean_restore_replaces_what_is_there() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let (plain, custom) = (scratch.file("dump.sql"), scratch.file("dump"));
    programs.dump(&original.place, &["--clean", "--if-exists"], &plain);
    programs.dump(&original.place, &["--format=custom"], &custom);
    let copy = Place::new("public");
    programs.restore_plain(&plain, &copy);
    original.state.assert_same(&state(&copy));
    programs.restore_plain(&plain, &copy);
    original.state.assert_same(&state(&copy));
    programs.restore(&custom, &copy, &["--clean", "--if-exists", "--exit-on-error"]);
    assert_restored(&original, &copy);
}

#[test]
fn a_restored_database_dumps_again() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let (first, second) = (scratch.file("first"), scratch.file("second"));
    programs.dump(&original.place, &["--format=custom"], &first);
    let copy = Place::new("public");
    programs.restore(&first, &copy, &["--exit-on-error"]);
    programs.dump(&copy, &["--format=custom"], &second);
    let copy = Place::new("public");
    programs.restore(&second, &copy, &["--exit-on-error"]);
    assert_restored(&original, &copy);
}

/// A restored database is locked down as the original was, but for privileges of the database, and can be opened.
#[test]
fn a_lockdown_restores() {
    let (original, scratch, programs) = (Place::new("public"), Scratch::new(), Programs::tested());
    original.admin().run("CREATE EXTENSION tenant_rls; SELECT * FROM tenant_lockdown(true)");
    let file = scratch.file("dump");
    programs.dump(&original, &["--format=custom"], &file);
    let copy = Place::new("public");
    let mut admin = copy.admin();
    let open = "SELECT has_function_privilege('public', 'pg_notify(text, text)', 'EXECUTE')";
    assert!(admin.one::<bool>(open));
    assert_eq!(programs.restore(&file, &copy, &["--exit-on-error"]), "");
    assert!(!admin.one::<bool>(open));
    let left: String =
        admin.one("SELECT string_agg(split_part(statement, ' ON', 1), ', ') FROM tenant_lockdown()");
    assert_eq!(left, "REVOKE TEMPORARY");
    admin.run("SELECT * FROM tenant_lockdown_undo(true)");
    assert!(admin.one::<bool>(open));
}

#[test]
fn an_extension_in_another_schema_restores() {
    let (original, scratch, programs) = (Original::new("tenancy"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump");
    programs.dump(&original.place, &["--format=custom"], &file);
    let copy = Place::new("tenancy");
    assert_eq!(programs.restore(&file, &copy, &["--exit-on-error"]), "");
    assert_restored(&original, &copy);
}

/// One warning for each row that names the missing role: two grants, one operator. pg_restore shows warnings only
/// with --verbose.
#[test]
fn a_role_missing_in_the_other_cluster_is_reported_and_gets_nothing() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump");
    programs.dump(&original.place, &["--format=custom"], &file);
    let cluster = Cluster::start(&[PRELOADED]);
    let copy = Place::in_cluster(&cluster, &original.place.database);
    original.roles.create(&copy);
    let messages =
        programs.restore(&file, &copy, &["--exit-on-error", "--no-owner", "--jobs=2", "--verbose"]);
    assert_eq!(messages.matches("WARNING").count(), 3, "{messages}");
    let expected = original.state.without_role(&original.roles.absent);
    assert_eq!(expected.of("grants"), state(&copy).of("grants"));
    assert_eq!(expected.of("operators"), state(&copy).of("operators"));
    assert_absent_role_has_nothing(&copy, &original.roles);
}

#[test]
fn another_cluster_behaves_the_same() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let file = scratch.file("dump.sql");
    programs.dump(&original.place, &[], &file);
    let cluster = Cluster::start(&[PRELOADED]);
    let copy = Place::in_cluster(&cluster, &original.place.database);
    original.roles.create(&copy);
    let messages = programs.restore_plain(&file, &copy);
    assert_eq!(messages.matches("WARNING").count(), 3, "{messages}");
    let Original { roles, state: before, .. } = original;
    before.without_role(&roles.absent).assert_same(&state(&copy));
    assert_behaves(&copy, &roles);
}

/// GRANT to a missing role is an error of the server, whatever is dumped; psql goes on after it.
#[test]
fn a_missing_role_with_privileges_costs_only_these() {
    let (original, scratch, programs) = (Original::new("public"), Scratch::new(), Programs::tested());
    let role = regrole(&original.roles.absent);
    original.place.admin().run(&format!("SELECT tenant_grant({role}), tenant_grant_operator({role})"));
    let before = state(&original.place).without_role(&original.roles.absent);
    let file = scratch.file("dump.sql");
    programs.dump(&original.place, &[], &file);
    let cluster = Cluster::start(&[PRELOADED]);
    let copy = Place::in_cluster(&cluster, &original.place.database);
    original.roles.create(&copy);
    let (success, messages) = programs.attempt("psql", &copy, &["-X", "-q", "-o", "/dev/null", "-f", &file]);
    let missing = format!("role \"{}\" does not exist", original.roles.absent);
    let errors: Vec<_> = messages.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(success && !errors.is_empty(), "{messages}");
    assert!(errors.iter().all(|line| line.contains(&missing)), "{messages}");
    for kind in ["grants", "operators", "plans", "changes", "policies", "triggers"] {
        assert_eq!(before.of(kind), state(&copy).of(kind));
    }
    assert_absent_role_has_nothing(&copy, &original.roles);
    assert_behaves(&copy, &original.roles);
}

/// Neither a role that was dropped and made again nor one that took over the name of a renamed role gets, from
/// a dump, what it did not have.
#[test]
fn a_role_of_the_same_name_inherits_nothing() {
    let (original, scratch, programs) = (Place::new("public"), Scratch::new(), Programs::tested());
    let mut admin = original.admin();
    let [again, renamed] = ["again", "renamed"].map(|name| format!("{name}_{}", original.database));
    admin.run(&format!(
        "CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}'); CREATE ROLE {again}; CREATE ROLE {renamed};
         SELECT tenant_grant('{again}'), tenant_grant_operator('{again}'), tenant_grant('{renamed}', '{A}');
         DROP OWNED BY {again}, {renamed}; DROP ROLE {again}; ALTER ROLE {renamed} RENAME TO {renamed}_2;
         CREATE ROLE {again} LOGIN; CREATE ROLE {renamed} LOGIN"
    ));
    let file = scratch.file("dump");
    programs.dump(&original, &["--format=custom"], &file);
    let copy = Place::new("public");
    programs.restore(&file, &copy, &["--exit-on-error"]);
    for place in [original, copy] {
        for role in [&again, &renamed] {
            let attempt = place.connect(role).fails(&format!("SET app.current_tenant = '{A}'"));
            assert_eq!(attempt, "42501", "{role} in {}", place.database);
        }
        let operators =
            format!("SELECT count(*) FROM tenant_rls.operators WHERE role_oid = '{again}'::regrole");
        assert_eq!(place.admin().one::<i64>(&operators), 0, "{}", place.database);
    }
}

/// Ways to take installed rows away other than to delete them.
#[test]
fn installed_rows_that_were_renamed_or_truncated_stay_away() {
    for change in [
        "SELECT tenant_resource_define('seats', 'gauge', 'seat', 'none');
         UPDATE tenant_rls.plan_limits SET resource = 'seats' WHERE plan = 'free' AND resource = 'users'",
        "TRUNCATE tenant_rls.plan_limits; SELECT tenant_plan_limit_set('free', 'users', 6)",
        "DELETE FROM tenant_rls.plan_limits WHERE plan = 'free';
         UPDATE tenant_rls.plans SET plan = 'basic' WHERE plan = 'free'",
        "UPDATE tenant_rls.plan_limits SET installed = false WHERE plan = 'starter'",
    ] {
        let (original, scratch, programs) = (Place::new("public"), Scratch::new(), Programs::tested());
        original.admin().run("CREATE EXTENSION tenant_rls");
        original.admin().run(change);
        let file = scratch.file("dump");
        programs.dump(&original, &["--format=custom"], &file);
        let copy = Place::new("public");
        programs.restore(&file, &copy, &["--exit-on-error"]);
        for table in ["plans", "resources", "plan_limits", "changes"] {
            let rows = format!("SELECT string_agg(t::text, E'\\n' ORDER BY t) FROM tenant_rls.{table} AS t");
            let [before, after] = [&original, &copy].map(|place| place.admin().one::<String>(&rows));
            assert_eq!(before, after, "{change}");
        }
    }
}

/// The programs of each version that one may come from, with the extension, oldest first.
fn older() -> Vec<Programs> {
    let bins =
        program("TENANT_RLS_OLDER_BINS", "PostgreSQL 15 and others, with the extension").unwrap_or_default();
    bins.split(':').filter(|path| !path.is_empty()).map(Programs::at).collect()
}

/// A cluster of that version, with an original in it.
fn old_cluster(programs: &Programs) -> (Cluster, Original) {
    let cluster = Cluster::of(&programs.path(), &[PRELOADED]);
    let original = Original::at(Place::in_cluster(&cluster, "old"));
    (cluster, original)
}

/// Some minors keep a mark on every column, which the programs of older minors of a later version hand on and
/// their servers refuse, whatever the table: there is no way up from such a server but its own pg_dump.
fn knows_columns_of(new: &Cluster, old: &Cluster) -> bool {
    let marks = |cluster: &Cluster| {
        let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attoptions::text LIKE '%pg_attver=%')";
        cluster.connect("postgres", "postgres").one::<bool>(sql)
    };
    marks(new) || !marks(old)
}

const TOO_OLD: &str = "the tested server is a minor too old to take any table of it (pg_attver)";

/// With the new version's pg_dump, as the manual says, and with the old one's.
#[test]
fn a_dump_of_an_older_version_restores() {
    for programs in older() {
        let version = programs.major();
        let (old, original) = old_cluster(&programs);
        let scratch = Scratch::new();
        let cluster = Cluster::start(&[PRELOADED]);
        original.roles.create(&Place::in_cluster(&cluster, "roles"));
        let absent = ident(&original.roles.absent);
        cluster.connect("postgres", "postgres").run(&format!("CREATE ROLE {absent} LOGIN"));
        let mut dumpers = vec![("by_old", programs)];
        if knows_columns_of(&cluster, &old) {
            dumpers.push(("by_new", Programs::tested()));
        } else {
            skipped(&format!("a dump of PostgreSQL {version} by the tested pg_dump: {TOO_OLD}"));
        }
        for (database, dumper) in dumpers {
            let file = scratch.file(database);
            dumper.dump(&original.place, &["--format=custom"], &file);
            let copy = Place::in_cluster(&cluster, database);
            let said = Programs::tested().restore(&file, &copy, &["--exit-on-error"]);
            assert_eq!(said, "", "{version} {database}");
            assert_restored(&original, &copy);
        }
    }
}

#[test]
fn pg_upgrade_keeps_everything() {
    let tested = Programs::tested().major();
    let older: Vec<Programs> = older().into_iter().filter(|programs| programs.major() < tested).collect();
    if older.is_empty() {
        skipped(&format!("pg_upgrade: there is no version before {tested} to come from"));
    }
    for programs in older {
        let version = programs.major();
        let (old, original) = old_cluster(&programs);
        let new = Cluster::start(&[PRELOADED]);
        if !knows_columns_of(&new, &old) {
            skipped(&format!("pg_upgrade from PostgreSQL {version}: {TOO_OLD}"));
            continue;
        }
        old.down();
        new.down();
        let scratch = Scratch::new();
        for option in ["--check", "--jobs=2"] {
            let output = upgrade(&old, &new, &scratch, option);
            assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stdout));
        }
        new.up();
        assert_restored(&original, &original.place.moved_to(&new));
    }
}

fn upgrade(old: &Cluster, new: &Cluster, scratch: &Scratch, option: &str) -> Output {
    command(&format!("{}/pg_upgrade", new.programs()))
        .args(["-b", old.programs(), "-B", new.programs(), "-d", &old.data(), "-D", &new.data()])
        .args(["-p", &old.port().to_string(), "-P", &new.port().to_string(), "-U", "postgres"])
        .args(["-s", scratch.path(), option])
        .current_dir(scratch.path())
        .output()
        .expect("pg_upgrade")
}

/// Nothing is released yet: there is no other version to come from.
#[test]
fn an_update_to_the_same_version_changes_nothing() {
    let original = Original::new("public");
    original.place.admin().run("ALTER EXTENSION tenant_rls UPDATE");
    assert_restored(&original, &original.place);
}

/// A role that is subject to the policies dumps the rows of its tenant, and nothing without one.
#[test]
fn a_tenant_dumps_its_own_rows() {
    let db = crate::harness::Db::with_orders();
    let (host, port) = db.address();
    let program = format!("{}/pg_dump", Programs::tested().path());
    let dump = |options: &str| {
        let port = port.to_string();
        let app = db.app();
        let arguments = ["--enable-row-security", "--data-only", "-t", "orders", "-h", host, "-p", &port];
        let mut command = command(&program);
        command.args(arguments).args(["-U", &app, db.name()]).env("PGOPTIONS", options);
        command.output().expect("pg_dump")
    };
    for (tenant, own, others) in
        [(A, ["\ta1\n", "\ta2\n"], "\tb"), (crate::harness::B, ["\tb3\n", "\tb4\n"], "\ta")]
    {
        let output = dump(&format!("-c app.current_tenant={tenant}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = String::from_utf8_lossy(&output.stdout);
        assert!(own.iter().all(|row| rows.contains(row)), "{rows}");
        assert!(!rows.contains(others), "{rows}");
    }
    assert!(!dump("").status.success(), "without a tenant");
}

/// With all of its tables, as the documents say: the tables of the extension, which it may not read, are left out.
#[test]
fn a_tenant_dumps_its_schema() {
    let db = crate::harness::Db::with_orders();
    let (host, port) = db.address();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE notes (tenant_id uuid, id bigserial, note text); SELECT tenant_protect('notes');
         INSERT INTO notes (tenant_id, note) VALUES ('{A}', 'a9'), ('{B}', 'b9');
         GRANT SELECT ON notes, notes_id_seq TO {app}",
        B = crate::harness::B
    ));
    let program = format!("{}/pg_dump", Programs::tested().path());
    let dump = |tenant: &str, options: &[&str]| {
        let mut command = command(&program);
        command.args(options).args(["-h", host, "-p", &port.to_string(), "-U", &app, db.name()]);
        let output = command.env("PGOPTIONS", format!("-c app.current_tenant={tenant}")).output();
        let output = output.expect("pg_dump");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    // Without the option the policies are an error, and with it the tables of the extension are, or their sequences.
    let (whole, rows, _) = dump(A, &["-n", "public"]);
    assert!(!whole && !rows.contains("\tb"), "{rows}");
    let (whole, rows, errors) = dump(A, &["--enable-row-security"]);
    let is_named = errors.contains("tenant_rls") || errors.contains("changes_change_id_seq");
    assert!(!whole && is_named && !rows.contains("\tb"), "{errors}");
    for (tenant, other) in [(A, crate::harness::B), (crate::harness::B, A)] {
        let (whole, rows, errors) = dump(tenant, &["--enable-row-security", "-n", "public"]);
        assert!(whole, "{errors}");
        assert_eq!((rows.matches(tenant).count(), rows.matches(other).count()), (3, 0), "{rows}");
        assert!(
            rows.contains("COPY public.notes") && rows.contains("CREATE POLICY tenant_boundary"),
            "{rows}"
        );
    }
}
