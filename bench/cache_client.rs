//! The client of the cache benchmarks: the same thin code for PostgreSQL and Redis, over a Unix socket, with one
//! request in flight for each connection.
//!
//!     cache_client (pg USER DATABASE | redis) SOCKET DO SECONDS CLIENTS KEYS BYTES EXPIRES STATEMENT
//!
//! DO is `get`, `set`, `consume`, `probe`, `fill`, `fill-many` or `invalidate`. Client n acts for tenant n, a uuid; all
//! that `consume` act for one. A value is a JSON object
//! that names its tenant, its key and the instant until which it holds, in the form in which jsonb is printed; every get
//! compares all of it, and fails when it is of another tenant or key, not whole, or past its time. `probe` fails unless a
//! value of two seconds is there at first, and is not afterwards. Prints microseconds a
//! call and client; for `invalidate` those of one invalidation, and of the slowest get or set of other clients meanwhile
//! and without it.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, thread};

/// Tenant n, as bench/works.py makes them.
fn tenant(n: usize) -> String {
    format!("00000000-0000-4000-8000-{}", 100_000_000_001u64 + n as u64)
}

/// The value of a key of a tenant, of about so many bytes.
fn value(tenant: &str, key: usize, bytes: usize, expires: u64) -> String {
    let mut items = String::new();
    let mut random = key as u64 * 0x9e37_79b9 + 1;
    let mut id = 0;
    while items.len() + 100 < bytes {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if id > 0 {
            items += ", ";
        }
        items += &format!(
            "{{\"id\": {id}, \"sku\": \"{:012x}\", \"tags\": [\"new\", \"sale\"], \"price\": {}.{:02}}}",
            random >> 16,
            random >> 50,
            (random >> 40) % 100
        );
        id += 1;
    }
    format!("{{\"e\": {expires}, \"k\": {key}, \"p\": [{items}], \"t\": \"{tenant}\"}}")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

/// A connection that answers one request at a time.
trait Connection: Send {
    fn get(&mut self, key: usize) -> Option<&[u8]>;
    fn set(&mut self, key: usize, value: &str);
    /// Takes a unit of the tenant; whether there was one.
    fn consume(&mut self) -> bool;
    fn fill_many(&mut self, from: usize, to: usize);
    fn make_group(&mut self, keys: usize);
    /// How many keys there were. Where there are transactions, in one that stays open.
    fn invalidate_group(&mut self) -> usize;
    fn commit(&mut self);
}

/// What one writes to count against a limit in Redis.
const CONSUME: &[u8] = b"local used = redis.call('INCRBY', KEYS[1], ARGV[1]) \
    if used > tonumber(ARGV[2]) then redis.call('DECRBY', KEYS[1], ARGV[1]) return 0 end return 1";

struct Redis {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    prefix: String,
    ttl: String,
    answer: Vec<u8>,
    request: Vec<u8>,
}

impl Redis {
    fn open(socket: &str, tenant: &str, ttl: u64) -> Redis {
        let stream = UnixStream::connect(socket).expect("Redis answers");
        let reader = BufReader::with_capacity(64 << 10, stream.try_clone().expect("a socket"));
        let (prefix, ttl) = (format!("tenant:{tenant}:"), ttl.to_string());
        Redis { stream, reader, prefix, ttl, answer: Vec::new(), request: Vec::new() }
    }

    fn push(&mut self, words: &[&[u8]]) {
        write!(self.request, "*{}\r\n", words.len()).expect("memory");
        for word in words {
            write!(self.request, "${}\r\n", word.len()).expect("memory");
            self.request.extend_from_slice(word);
            self.request.extend_from_slice(b"\r\n");
        }
    }

    fn send(&mut self) {
        self.stream.write_all(&self.request).expect("Redis reads");
        self.request.clear();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).expect("Redis answers");
            match byte[0] {
                b'\n' => break,
                b'\r' => {}
                c => line.push(c),
            }
        }
        assert!(line.first() != Some(&b'-'), "Redis: {}", String::from_utf8_lossy(&line));
        String::from_utf8(line).expect("text")
    }

    /// Whether there was a text, which then is the answer.
    fn bulk(&mut self) -> bool {
        let length: i64 = self.line()[1..].parse().expect("a length");
        if length < 0 {
            return false;
        }
        self.answer.resize(length as usize + 2, 0);
        self.reader.read_exact(&mut self.answer).expect("Redis answers");
        self.answer.truncate(length as usize);
        true
    }
}

impl Connection for Redis {
    fn get(&mut self, key: usize) -> Option<&[u8]> {
        let key = format!("{}k{key}", self.prefix);
        self.push(&[b"GET", key.as_bytes()]);
        self.send();
        self.bulk().then_some(self.answer.as_slice())
    }

    fn set(&mut self, key: usize, value: &str) {
        let key = format!("{}k{key}", self.prefix);
        let ttl = self.ttl.clone();
        self.push(&[b"SETEX", key.as_bytes(), ttl.as_bytes(), value.as_bytes()]);
        self.send();
        self.line();
    }

    fn consume(&mut self) -> bool {
        let key = format!("{}used", self.prefix);
        self.push(&[b"EVAL", CONSUME, b"1", key.as_bytes(), b"1", b"1000000000000000"]);
        self.send();
        self.line() == ":1"
    }

    fn fill_many(&mut self, from: usize, to: usize) {
        for first in (from..to).step_by(1000) {
            for key in first..to.min(first + 1000) {
                let name = format!("{}many:{}:{}", self.prefix, key / 1000, key % 1000);
                self.push(&[b"SETEX", name.as_bytes(), b"86400", b"{\"n\": 1}"]);
            }
            self.send();
            for _ in first..to.min(first + 1000) {
                self.line();
            }
        }
    }

    fn make_group(&mut self, keys: usize) {
        for key in 0..keys {
            let name = format!("{}group:{key}", self.prefix);
            self.push(&[b"SETEX", name.as_bytes(), b"3600", b"1"]);
        }
        self.send();
        for _ in 0..keys {
            self.line();
        }
    }

    fn invalidate_group(&mut self) -> usize {
        let pattern = format!("{}group:*", self.prefix);
        self.push(&[b"KEYS", pattern.as_bytes()]);
        self.send();
        let count: usize = self.line()[1..].parse().expect("a count");
        let mut keys = Vec::new();
        for _ in 0..count {
            assert!(self.bulk(), "a key");
            keys.push(self.answer.clone());
        }
        let words: Vec<&[u8]> = std::iter::once(&b"DEL"[..]).chain(keys.iter().map(Vec::as_slice)).collect();
        self.push(&words);
        self.send();
        self.line()[1..].parse().expect("a count")
    }

    fn commit(&mut self) {}
}

struct Postgres {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    answer: Vec<u8>,
    /// Whether there was a row with something in it.
    found: bool,
    set: String,
}

impl Postgres {
    /// `get` and `set` are statements with places for the tenant and for the seconds that a value lives.
    fn open(
        socket: &str,
        user: &str,
        database: &str,
        tenant: &str,
        ttl: u64,
        get: &str,
        set: &str,
    ) -> Postgres {
        let stream = UnixStream::connect(socket).expect("PostgreSQL answers");
        let reader = BufReader::with_capacity(64 << 10, stream.try_clone().expect("a socket"));
        let statement = |text: &str| text.replace("{tenant}", tenant).replace("{ttl}", &ttl.to_string());
        let mut own = Postgres { stream, reader, answer: Vec::new(), found: false, set: statement(set) };
        let mut startup = vec![0, 3, 0, 0];
        let options = format!("-c app.current_tenant={tenant} -c my.tenant={tenant}");
        for word in ["user", user, "database", database, "options", &options, ""] {
            startup.extend_from_slice(word.as_bytes());
            startup.push(0);
        }
        let mut message = (startup.len() as u32 + 4).to_be_bytes().to_vec();
        message.extend(startup);
        own.stream.write_all(&message).expect("PostgreSQL reads");
        own.finish();
        own.prepare("g", &statement(get));
        own
    }

    fn message(kind: u8, body: &[u8], into: &mut Vec<u8>) {
        into.push(kind);
        into.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        into.extend_from_slice(body);
    }

    /// Reads to the end of the answer; the first column of the last row stays.
    fn finish(&mut self) {
        loop {
            let mut head = [0; 5];
            self.reader.read_exact(&mut head).expect("PostgreSQL answers");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
            let mut small = [0; 1024];
            match head[0] {
                b'D' => {
                    self.answer.resize(length, 0);
                    self.reader.read_exact(&mut self.answer).expect("PostgreSQL answers");
                    self.found = self.answer[2..6] != (-1i32).to_be_bytes();
                    self.answer.drain(..6);
                }
                kind => {
                    let mut body = vec![];
                    let body = if length <= small.len() {
                        &mut small[..length]
                    } else {
                        body.resize(length, 0);
                        &mut body
                    };
                    self.reader.read_exact(body).expect("PostgreSQL answers");
                    assert!(kind != b'E', "PostgreSQL: {}", String::from_utf8_lossy(body));
                    if kind == b'Z' {
                        return;
                    }
                }
            }
        }
    }

    fn prepare(&mut self, name: &str, statement: &str) {
        let mut out = Vec::new();
        let body = format!("{name}\0{statement}\0\0\0");
        Self::message(b'P', body.as_bytes(), &mut out);
        Self::message(b'S', &[], &mut out);
        self.stream.write_all(&out).expect("PostgreSQL reads");
        self.finish();
    }

    fn execute(&mut self, name: &str, arguments: &[&str]) {
        let mut body = format!("\0{name}\0").into_bytes();
        body.extend_from_slice(&0u16.to_be_bytes());
        body.extend_from_slice(&(arguments.len() as u16).to_be_bytes());
        for argument in arguments {
            body.extend_from_slice(&(argument.len() as u32).to_be_bytes());
            body.extend_from_slice(argument.as_bytes());
        }
        body.extend_from_slice(&0u16.to_be_bytes());
        let mut out = Vec::with_capacity(body.len() + 64);
        Self::message(b'B', &body, &mut out);
        Self::message(b'E', &[0, 0, 0, 0, 0], &mut out);
        Self::message(b'S', &[], &mut out);
        self.stream.write_all(&out).expect("PostgreSQL reads");
        self.found = false;
        self.finish();
    }
}

impl Connection for Postgres {
    fn get(&mut self, key: usize) -> Option<&[u8]> {
        self.execute("g", &[&format!("k{key}")]);
        self.found.then_some(self.answer.as_slice())
    }

    fn set(&mut self, key: usize, value: &str) {
        if !self.set.is_empty() {
            let set = std::mem::take(&mut self.set);
            self.prepare("s", &set);
        }
        self.execute("s", &[&format!("k{key}"), value]);
    }

    fn consume(&mut self) -> bool {
        self.execute("g", &[]);
        self.answer == b"t"
    }

    fn fill_many(&mut self, _from: usize, _to: usize) {
        unreachable!("filled by SQL")
    }

    fn make_group(&mut self, keys: usize) {
        self.prepare(
            "m",
            &format!("SELECT count(*) FROM (SELECT tenant_cache_set('group:' || n, '1', '1 h') FROM generate_series(1, {keys}) AS n) AS s"),
        );
        self.execute("m", &[]);
        self.prepare("b", "BEGIN");
        self.prepare("i", "SELECT tenant_cache_invalidate('group:*')");
        self.prepare("c", "COMMIT");
    }

    fn invalidate_group(&mut self) -> usize {
        self.execute("b", &[]);
        self.execute("i", &[]);
        String::from_utf8_lossy(&self.answer).parse().expect("a count")
    }

    fn commit(&mut self) {
        self.execute("c", &[]);
    }
}

fn main() {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().expect("cache_client (pg USER DATABASE | redis) SOCKET DO SECONDS CLIENTS KEYS BYTES EXPIRES GET SET");
    let kind = next();
    let (user, database) = if kind == "pg" { (next(), next()) } else { Default::default() };
    let (socket, what) = (next(), next());
    let mut number = || next().parse::<f64>().expect("a number");
    let (seconds, clients, keys, bytes, expires) =
        (number(), number() as usize, number() as usize, number() as usize, number() as u64);
    let (get, set) = (next(), next());
    let open = |n: usize, expires: u64| -> Box<dyn Connection> {
        let ttl = expires.saturating_sub(now()).max(1);
        match kind.as_str() {
            "pg" => Box::new(Postgres::open(&socket, &user, &database, &tenant(n), ttl, &get, &set)),
            _ => Box::new(Redis::open(&socket, &tenant(n), ttl)),
        }
    };
    match what.as_str() {
        "fill" => {
            for n in 0..clients {
                let mut connection = open(n, expires);
                for key in 0..keys {
                    connection.set(key, &value(&tenant(n), key, bytes, expires));
                }
            }
        }
        "fill-many" => open(0, expires).fill_many(0, keys),
        "probe" => probe(&open, keys, bytes),
        "invalidate" => invalidate(&open, keys, bytes, expires),
        "get" | "set" | "consume" => load(&open, &what, seconds, clients, keys, bytes, expires),
        other => panic!("{other}"),
    }
}

/// Opens a connection of a tenant, whose values live until then.
type Open<'a> = &'a dyn Fn(usize, u64) -> Box<dyn Connection>;

/// A value is there until its time is over, and not after it: on a key of its own.
fn probe(open: Open, key: usize, bytes: usize) {
    let expires = now() + 2;
    let mut connection = open(0, expires);
    let set = value(&tenant(0), key, bytes, expires);
    connection.set(key, &set);
    assert!(connection.get(key) == Some(set.as_bytes()), "a value is not there");
    thread::sleep(Duration::from_millis(2500));
    assert!(connection.get(key).is_none(), "a value is there past its time");
}

fn load(open: Open, what: &str, seconds: f64, clients: usize, keys: usize, bytes: usize, expires: u64) {
    let (start, calls) = (Arc::new(Barrier::new(clients + 1)), Arc::new(AtomicU64::new(0)));
    let end = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..clients)
        .map(|n| {
            let consumes = what == "consume";
            let reads = what == "get";
            let mut connection = open(if consumes { 0 } else { n }, expires);
            let (start, calls, end) = (start.clone(), calls.clone(), end.clone());
            thread::spawn(move || {
                let values: Vec<String> = (0..keys).map(|key| value(&tenant(n), key, bytes, expires)).collect();
                let mut random = n as u64 + 1;
                let mut done = 0;
                start.wait();
                while !end.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let key = (random >> 33) as usize % keys;
                    if consumes {
                        assert!(connection.consume(), "the limit is reached");
                    } else if reads {
                        let found = connection.get(key).expect("a value that is not there");
                        assert!(found == values[key].as_bytes(), "a wrong value: {}", String::from_utf8_lossy(found));
                        // It was told whole seconds to live.
                        assert!(now() <= expires + 1, "an expired value");
                    } else {
                        connection.set(key, &values[key]);
                    }
                    done += 1;
                }
                calls.fetch_add(done, Ordering::Relaxed);
            })
        })
        .collect();
    start.wait();
    let begin = Instant::now();
    thread::sleep(Duration::from_secs_f64(seconds));
    end.store(true, Ordering::Relaxed);
    let spent = begin.elapsed().as_secs_f64();
    for thread in threads {
        thread.join().expect("every answer is right");
    }
    println!("{}", clients as f64 * spent * 1e6 / calls.load(Ordering::Relaxed) as f64);
}

/// How long the clients beside an invalidation go on before it, and before it is committed.
const WINDOW: Duration = Duration::from_millis(300);

/// One invalidation of so many keys, while other clients go on: a get of another tenant, a get and a set of the same.
fn invalidate(open: Open, keys: usize, bytes: usize, expires: u64) {
    const BEFORE: usize = 1;
    const MEANWHILE: usize = 2;
    let mut connection = open(0, expires);
    connection.make_group(keys);
    let (phase, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let others: Vec<_> = [(1, 0, false), (0, 0, false), (0, 1, true)]
        .into_iter()
        .map(|(n, key, sets)| {
            let mut other = open(n, expires);
            let value = value(&tenant(n), key, bytes, expires);
            let (phase, end) = (phase.clone(), end.clone());
            thread::spawn(move || {
                let mut slowest = [Duration::ZERO; 4];
                while !end.load(Ordering::Relaxed) {
                    let (first, begin) = (phase.load(Ordering::SeqCst), Instant::now());
                    if sets {
                        other.set(key, &value);
                    } else {
                        assert!(other.get(key) == Some(value.as_bytes()), "a wrong value");
                    }
                    let (spent, last) = (begin.elapsed(), phase.load(Ordering::SeqCst));
                    // A call that begins or ends meanwhile may have waited for the invalidation.
                    let at = if first <= MEANWHILE && last >= MEANWHILE { MEANWHILE } else { first };
                    slowest[at] = slowest[at].max(spent);
                }
                (slowest[BEFORE], slowest[MEANWHILE])
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(100));
    phase.store(BEFORE, Ordering::SeqCst);
    thread::sleep(WINDOW);
    phase.store(MEANWHILE, Ordering::SeqCst);
    let begin = Instant::now();
    let removed = connection.invalidate_group();
    let mut spent = begin.elapsed();
    // What it would keep others from until its transaction ends, it keeps them from now.
    thread::sleep(WINDOW);
    let begin = Instant::now();
    connection.commit();
    spent += begin.elapsed();
    phase.store(MEANWHILE + 1, Ordering::SeqCst);
    end.store(true, Ordering::Relaxed);
    assert_eq!(removed, keys, "keys removed");
    let slowest = others.into_iter().map(|other| other.join().expect("the other clients are answered"));
    let (without, meanwhile) =
        slowest.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1))).expect("there are other clients");
    println!("{} {} {}", micros(spent), micros(meanwhile), micros(without));
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
