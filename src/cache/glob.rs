//! Patterns of keys, as those of Redis (`KEYS`, `stringmatchlen`), of characters instead of bytes.
//!
//! Pure: a pattern and a key in, yes or no out. Takes at most the product of the two lengths: no pattern is expensive.

/// A pattern.
pub struct Glob(Vec<Token>);

enum Token {
    /// `*`: any characters, or none.
    Any,
    /// `?`: one character.
    One,
    /// A character that stands for itself.
    Char(char),
    /// `[…]`: one character of these ranges, or with `^` of none of them.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Token::Any | Token::One => true,
            Token::Char(own) => *own == c,
            Token::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
            }
        }
    }
}

impl Glob {
    /// Reads a pattern. Every text is one: a class that is not closed ends with the text, a `\` at the end stands for
    /// itself.
    pub fn parse(pattern: &str) -> Glob {
        let mut tokens = Vec::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            tokens.push(match c {
                '*' => match tokens.last() {
                    Some(Token::Any) => continue,
                    _ => Token::Any,
                },
                '?' => Token::One,
                '[' => class(&mut rest),
                '\\' => Token::Char(rest.next().unwrap_or('\\')),
                c => Token::Char(c),
            });
        }
        Glob(tokens)
    }

    /// Whether the whole key is one of the pattern.
    pub fn matches(&self, key: &str) -> bool {
        let (mut token, mut rest) = (0, key.chars());
        // Where to go on when what comes after the last `*` does not fit here: one character later.
        let mut retry: Option<(usize, std::str::Chars)> = None;
        loop {
            let mut after = rest.clone();
            let next = after.next();
            match (self.0.get(token), next) {
                (Some(Token::Any), _) => {
                    token += 1;
                    retry = Some((token, rest.clone()));
                    continue;
                }
                (Some(one), Some(c)) if one.takes(c) => {
                    token += 1;
                    rest = after;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            let Some((from, later)) = &mut retry else { return false };
            if later.next().is_none() {
                return false;
            }
            token = *from;
            rest = later.clone();
        }
    }

    /// What every key of the pattern begins with.
    pub fn prefix(&self) -> String {
        let letters =
            self.0.iter().map_while(|token| if let Token::Char(c) = token { Some(*c) } else { None });
        letters.collect()
    }
}

/// What stands after `[`, up to and with its `]`.
fn class(rest: &mut std::str::Chars) -> Token {
    let negated = rest.as_str().starts_with('^');
    if negated {
        rest.next();
    }
    let mut ranges = Vec::new();
    while let Some(c) = rest.next() {
        match c {
            ']' => break,
            '\\' if !rest.as_str().is_empty() => ranges.extend(rest.next().map(|c| (c, c))),
            first => {
                let mut ahead = rest.clone();
                match (ahead.next(), ahead.next()) {
                    (Some('-'), Some(last)) => {
                        *rest = ahead;
                        ranges.push((first.min(last), first.max(last)));
                    }
                    _ => ranges.push((first, first)),
                }
            }
        }
    }
    Token::Class { negated, ranges }
}

/// The first text after all that begin with the prefix, in the order of code points; `None` if there is none.
pub fn successor(prefix: &str) -> Option<String> {
    let mut letters: Vec<char> = prefix.chars().collect();
    while let Some(last) = letters.pop() {
        let next = match last {
            // Between the two are no characters.
            '\u{d7ff}' => Some('\u{e000}'),
            last => char::from_u32(last as u32 + 1),
        };
        if let Some(next) = next {
            letters.push(next);
            return Some(letters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Glob::parse(pattern).matches(key)
    }

    /// Redis's own function (util.c, stringmatchlen_impl, without the case), line by line.
    fn redis(mut p: &[char], mut s: &[char]) -> bool {
        while !p.is_empty() && !s.is_empty() {
            match p[0] {
                '*' => {
                    while p.len() > 1 && p[1] == '*' {
                        p = &p[1..];
                    }
                    if p.len() == 1 {
                        return true;
                    }
                    while !s.is_empty() {
                        if redis(&p[1..], s) {
                            return true;
                        }
                        s = &s[1..];
                    }
                    return false;
                }
                '?' => s = &s[1..],
                '[' => {
                    p = &p[1..];
                    let not = p.first() == Some(&'^');
                    if not {
                        p = &p[1..];
                    }
                    let mut found = false;
                    loop {
                        if p.len() >= 2 && p[0] == '\\' {
                            p = &p[1..];
                            found |= p[0] == s[0];
                        } else if p.first().is_none_or(|c| *c == ']') {
                            break;
                        } else if p.len() >= 3 && p[1] == '-' {
                            let (start, end) = (p[0].min(p[2]), p[0].max(p[2]));
                            p = &p[2..];
                            found |= s[0] >= start && s[0] <= end;
                        } else {
                            found |= p[0] == s[0];
                        }
                        p = &p[1..];
                    }
                    if found == not {
                        return false;
                    }
                    s = &s[1..];
                    if p.is_empty() {
                        break;
                    }
                }
                first => {
                    let mut letter = first;
                    if first == '\\' && p.len() >= 2 {
                        p = &p[1..];
                        letter = p[0];
                    }
                    if letter != s[0] {
                        return false;
                    }
                    s = &s[1..];
                }
            }
            p = &p[1..];
            if s.is_empty() {
                while p.first() == Some(&'*') {
                    p = &p[1..];
                }
                break;
            }
        }
        p.is_empty() && s.is_empty()
    }

    #[test]
    fn the_patterns_of_the_manual_of_redis() {
        for (pattern, key, expected) in [
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hbllo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hello", false),
            ("[\\]]", "]", true),
            ("[]", "a", false),
            ("[^]", "a", true),
            ("[a", "a", true),
            ("a\\", "a\\", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("?", "ä", true),
            ("user:*:cart", "user:7:cart", true),
            ("user:*:cart", "user:7:carts", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn no_pattern_is_expensive() {
        let pattern = "*a".repeat(200) + "b";
        assert!(!matches(&pattern, &"a".repeat(20_000)));
    }

    proptest! {
        #[test]
        fn fuzz_globs_match_as_redis_does(pattern in "[ab*?\\[\\]\\\\^-]{0,12}", key in "[ab\\[\\]\\\\^*-]{1,8}") {
            // No empty key: it is compared before a pattern of stars is looked at, and Redis has none in KEYS.
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &key), redis(&letters(&pattern), &letters(&key)));
        }

        #[test]
        fn fuzz_keys_of_a_pattern_lie_between_its_prefix_and_the_successor(pattern in "\\PC{0,12}", key in "\\PC{0,12}") {
            let glob = Glob::parse(&pattern);
            let prefix = glob.prefix();
            let inside = key.starts_with(&prefix);
            prop_assert!(inside || !glob.matches(&key));
            let below = successor(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(inside, key >= prefix && below);
        }
    }

    #[test]
    fn a_prefix_ends_where_the_pattern_begins() {
        for (pattern, prefix) in [("a\\*b*", "a*b"), ("*a", ""), ("abc", "abc"), ("a[b]", "a"), ("ä?", "ä")]
        {
            assert_eq!(Glob::parse(pattern).prefix(), prefix, "{pattern}");
        }
        assert_eq!(successor("a").as_deref(), Some("b"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(successor(""), None);
        assert_eq!(successor("\u{10ffff}"), None);
    }
}
