//! Text to filter, in one pass: tokens, then precedence (`or` < `and` < `not` < comparison), each literal checked
//! against its column as soon as both are known.

use std::{net::IpAddr, ops::Range};

use super::{Column, Filter, FilterError, Kind, Network, Operator, Unit, Value};

/// Longest filter. People type them.
const TEXT_BYTES: usize = 64 << 10;
/// Deepest nesting of parentheses and `not`: the parser's own stack is what it bounds.
const DEPTH: usize = 64;

pub(super) fn filter(text: &str, columns: &[Column]) -> Result<Filter, FilterError> {
    if text.len() > TEXT_BYTES {
        return Err(error(
            text,
            0,
            format!("a filter has at most {TEXT_BYTES} bytes, this one {}", text.len()),
        ));
    }
    let mut parser = Parser {
        text,
        columns,
        tokens: tokens(text)?,
        next: 0,
    };
    let filter = parser.any_of(0)?;
    match parser.peek() {
        Token {
            kind: TokenKind::End, ..
        } => Ok(filter),
        token => Err(parser.unexpected(&token, "`and`, `or` or the end")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    kind: TokenKind,
    /// Bytes of the text.
    place: Range<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenKind {
    /// A name, a keyword, a number with its unit, an address: told apart by what is expected.
    Bare,
    /// Without its quotes.
    Quoted(String),
    Operator(Operator),
    Open,
    Close,
    Comma,
    End,
}

fn tokens(text: &str) -> Result<Vec<Token>, FilterError> {
    let mut tokens = Vec::new();
    let mut rest = text.char_indices().peekable();
    while let Some((start, c)) = rest.next() {
        let mut end = start + c.len_utf8();
        let kind = match c {
            c if c.is_whitespace() => continue,
            '(' => TokenKind::Open,
            ')' => TokenKind::Close,
            ',' => TokenKind::Comma,
            '=' => {
                // `==` is what programmers type.
                if let Some((at, _)) = rest.next_if(|&(_, c)| c == '=') {
                    end = at + 1;
                }
                TokenKind::Operator(Operator::Equal)
            }
            '!' | '<' | '>' => {
                let wide = rest
                    .next_if(|&(_, next)| next == '=' || (c, next) == ('<', '>'))
                    .map(|(at, next)| {
                        end = at + 1;
                        next
                    });
                TokenKind::Operator(match (c, wide) {
                    ('!', Some(_)) | ('<', Some('>')) => Operator::NotEqual,
                    ('<', None) => Operator::Less,
                    ('<', Some(_)) => Operator::LessOrEqual,
                    ('>', None) => Operator::Greater,
                    ('>', Some(_)) => Operator::GreaterOrEqual,
                    _ => return Err(error(text, start, "expected != or `not`, got !".into())),
                })
            }
            quote @ ('\'' | '"') => {
                let mut value = String::new();
                loop {
                    match rest.next() {
                        None => return Err(error(text, start, format!("this {quote} has no end"))),
                        Some((at, c)) if c == quote => {
                            if rest.next_if(|&(_, c)| c == quote).is_none() {
                                end = at + 1;
                                break;
                            }
                            value.push(quote);
                        }
                        Some((_, c)) => value.push(c),
                    }
                }
                TokenKind::Quoted(value)
            }
            c if is_bare(c) => {
                while let Some((at, c)) = rest.next_if(|&(_, c)| is_bare(c)) {
                    end = at + c.len_utf8();
                }
                TokenKind::Bare
            }
            c => return Err(error(text, start, format!("unexpected {c:?}"))),
        };
        tokens.push(Token {
            kind,
            place: start..end,
        });
    }
    tokens.push(Token {
        kind: TokenKind::End,
        place: text.len()..text.len(),
    });
    Ok(tokens)
}

/// Names, numbers, units, addresses and networks have these.
fn is_bare(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '/' | '-' | '+' | '%')
}

struct Parser<'a> {
    text: &'a str,
    columns: &'a [Column],
    /// Ends in `End`, which is never passed.
    tokens: Vec<Token>,
    next: usize,
}

impl Parser<'_> {
    fn any_of(&mut self, depth: usize) -> Result<Filter, FilterError> {
        let mut parts = vec![self.all_of(depth)?];
        while self.takes_keyword("or") {
            parts.push(self.all_of(depth)?);
        }
        Ok(if parts.len() == 1 {
            parts.swap_remove(0)
        } else {
            Filter::Or(parts)
        })
    }

    fn all_of(&mut self, depth: usize) -> Result<Filter, FilterError> {
        let mut parts = vec![self.condition(depth)?];
        while self.takes_keyword("and") {
            parts.push(self.condition(depth)?);
        }
        Ok(if parts.len() == 1 {
            parts.swap_remove(0)
        } else {
            Filter::And(parts)
        })
    }

    fn condition(&mut self, depth: usize) -> Result<Filter, FilterError> {
        if depth == DEPTH {
            return Err(self.wrong(&self.peek(), format!("nested deeper than {DEPTH}")));
        }
        if self.takes_keyword("not") {
            return Ok(Filter::Not(Box::new(self.condition(depth + 1)?)));
        }
        if self.takes(&TokenKind::Open) {
            let inner = self.any_of(depth + 1)?;
            return match self.takes(&TokenKind::Close) {
                true => Ok(inner),
                false => Err(self.unexpected(&self.peek(), "`and`, `or` or )")),
            };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Filter, FilterError> {
        let column = self.column()?;
        let token = self.peek();
        if let TokenKind::Operator(operator) = token.kind {
            self.next += 1;
            let ordered = matches!(column.kind, Kind::Number { .. } | Kind::Time);
            if !ordered && !matches!(operator, Operator::Equal | Operator::NotEqual) {
                let message = format!("{} has no order: use =, !=, in or like", column.name);
                return Err(self.wrong(&token, message));
            }
            let literal = self.peek();
            let value = self.value(&column)?;
            return match value {
                Value::Network(network) => match operator {
                    Operator::Equal | Operator::NotEqual => {
                        let verb = if operator == Operator::Equal {
                            "in"
                        } else {
                            "not in"
                        };
                        let Network { address, bits } = network;
                        let message = format!(
                            "a network is compared with `{verb}`: {} {verb} {address}/{bits}",
                            column.name
                        );
                        Err(self.wrong(&literal, message))
                    }
                    _ => Err(self.wrong(&token, "a network has no order".into())),
                },
                value => Ok(Filter::Compare {
                    column: column.name,
                    operator,
                    value,
                }),
            };
        }
        let negated = self.takes_keyword("not");
        if self.takes_keyword("in") {
            return Ok(Filter::In {
                column: column.name,
                negated,
                values: self.values(&column)?,
            });
        }
        let like = self.peek();
        if self.takes_keyword("like") {
            if column.kind != Kind::Text {
                return Err(self.wrong(&like, format!("{} is no text: use = or in", column.name)));
            }
            let token = self.take();
            return match token.kind {
                TokenKind::Quoted(pattern) => Ok(Filter::Like {
                    column: column.name,
                    negated,
                    pattern,
                }),
                _ => Err(self.unexpected(&token, "a pattern in quotes, such as 'ngin%'")),
            };
        }
        let expected = if negated {
            "`in` or `like`"
        } else {
            "=, !=, <, <=, >, >=, `in` or `like`"
        };
        Err(self.unexpected(&self.peek(), expected))
    }

    fn column(&mut self) -> Result<Column, FilterError> {
        let token = self.take();
        if token.kind != TokenKind::Bare {
            return Err(self.unexpected(&token, "a column"));
        }
        let name = self.text_of(&token);
        if let Some(column) = self.columns.iter().find(|column| column.name == name) {
            return Ok(column.clone());
        }
        let names = self.columns.iter().map(|column| column.name);
        let message = match nearest(name, names.clone()) {
            Some(meant) => format!("there is no column {name:?}, did you mean {meant}?"),
            None => format!(
                "there is no column {name:?}, there are: {}",
                names.collect::<Vec<_>>().join(", ")
            ),
        };
        Err(self.wrong(&token, message))
    }

    /// A list in parentheses, or a single value.
    fn values(&mut self, column: &Column) -> Result<Vec<Value>, FilterError> {
        if !self.takes(&TokenKind::Open) {
            return Ok(vec![self.value(column)?]);
        }
        let mut values = vec![self.value(column)?];
        while self.takes(&TokenKind::Comma) {
            values.push(self.value(column)?);
        }
        match self.takes(&TokenKind::Close) {
            true => Ok(values),
            false => Err(self.unexpected(&self.peek(), ", or )")),
        }
    }

    fn value(&mut self, column: &Column) -> Result<Value, FilterError> {
        let token = self.take();
        let (literal, quoted) = match &token.kind {
            TokenKind::Bare => (self.text_of(&token), false),
            TokenKind::Quoted(text) => (text.as_str(), true),
            _ => return Err(self.unexpected(&token, &format!("a value of {}", column.name))),
        };
        let value = match column.kind {
            Kind::Number { .. } if quoted => {
                Err(format!("{} is a number: leave the quotes out", column.name))
            }
            Kind::Number { max, unit } => number(literal, column.name, max, unit).map(Value::Number),
            Kind::Text if quoted => Ok(Value::Text(literal.to_owned())),
            Kind::Text => Err(format!(
                "{} is a text: put it in quotes, '{literal}'",
                column.name
            )),
            Kind::Word(words) => word(literal, column.name, words).map(Value::Word),
            Kind::Address => address(literal, column.name),
            Kind::Time => time(literal, column.name).map(Value::Time),
        };
        value.map_err(|message| self.wrong(&token, message))
    }

    fn peek(&self) -> Token {
        self.tokens[self.next].clone()
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        if token.kind != TokenKind::End {
            self.next += 1;
        }
        token
    }

    fn takes(&mut self, kind: &TokenKind) -> bool {
        let found = self.tokens[self.next].kind == *kind;
        self.next += usize::from(found);
        found
    }

    fn takes_keyword(&mut self, keyword: &str) -> bool {
        let token = &self.tokens[self.next];
        let found = token.kind == TokenKind::Bare && self.text_of(token).eq_ignore_ascii_case(keyword);
        self.next += usize::from(found);
        found
    }

    fn text_of(&self, token: &Token) -> &str {
        &self.text[token.place.clone()]
    }

    fn unexpected(&self, token: &Token, expected: &str) -> FilterError {
        let got = match token.kind {
            TokenKind::End => "the end",
            _ => self.text_of(token),
        };
        self.wrong(token, format!("expected {expected}, got {got}"))
    }

    fn wrong(&self, token: &Token, message: String) -> FilterError {
        error(self.text, token.place.start, message)
    }
}

fn error(text: &str, at: usize, message: String) -> FilterError {
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    FilterError {
        message,
        line: before.matches('\n').count() + 1,
        column: text[start..at].chars().count() + 1,
        // A tab has another width than the blank that the caret is pushed by.
        text: line.replace('\t', " "),
    }
}

/// Units and how many of the column's own they are, largest first.
const DURATIONS: &[(&str, u64)] = &[
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];
const SIZES: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A whole number in the column's unit. The literal may have decimals if its unit makes it whole: `1.5ms`.
fn number(literal: &str, column: &str, max: u64, unit: Unit) -> Result<u64, String> {
    let digits = literal
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(literal.len());
    let (amount, suffix) = literal.split_at(digits);
    let amount = amount.replace('_', "");
    let (whole, decimals) = amount.split_once('.').unwrap_or((&amount, ""));
    let is_number =
        !whole.is_empty() && (amount.find('.').is_none() || !decimals.is_empty()) && !decimals.contains('.');
    if !is_number {
        return Err(format!("{column} is a number, {literal:?} is none"));
    }
    let units = match unit {
        Unit::One => &[][..],
        Unit::Microseconds => DURATIONS,
        Unit::Bytes => SIZES,
    };
    let factor = match units.iter().find(|(name, _)| *name == suffix) {
        Some(&(_, factor)) => factor,
        None if suffix.is_empty() => 1,
        None if units.is_empty() => return Err(format!("{column} has no unit, so {suffix:?} means nothing")),
        None => {
            let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "{suffix:?} is no unit of {column}, use one of {}",
                names.join(", ")
            ));
        }
    };
    let too_large = || format!("{column} is at most {max}, {literal} is more");
    let decimals = decimals.trim_end_matches('0');
    let not_whole = || format!("{column} is a whole number of its unit, {literal} is not");
    // More decimals than the finest unit has are never whole; fewer than 19 digits times 2^47 fit.
    let scale = u32::try_from(decimals.len())
        .ok()
        .filter(|&digits| digits < 19)
        .ok_or_else(not_whole)?;
    let scale = 10_u128.pow(scale);
    let part = decimals
        .bytes()
        .fold(0, |part, digit| part * 10 + u128::from(digit - b'0'))
        * u128::from(factor);
    if !part.is_multiple_of(scale) {
        return Err(not_whole());
    }
    let whole = whole.parse::<u64>().map_err(|_| too_large())?;
    let value = u128::from(whole) * u128::from(factor) + part / scale;
    let value = u64::try_from(value).map_err(|_| too_large())?;
    if value > max {
        return Err(too_large());
    }
    Ok(value)
}

fn word(literal: &str, column: &str, words: &'static [(&'static str, i8)]) -> Result<&'static str, String> {
    if let Some((word, _)) = words.iter().find(|(word, _)| *word == literal) {
        return Ok(word);
    }
    let names = words.iter().map(|(word, _)| *word);
    Err(match nearest(literal, names.clone()) {
        Some(meant) => format!("{column} is never {literal:?}, did you mean {meant}?"),
        None => format!(
            "{column} is never {literal:?}, it is one of {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    })
}

fn address(literal: &str, column: &str) -> Result<Value, String> {
    let parse = |text: &str| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("{column} is an address, {text:?} is none: 10.0.0.1, ::1, 10.0.0.0/8"))
    };
    let Some((address, bits)) = literal.split_once('/') else {
        return parse(literal).map(|address| Value::Address(address.to_canonical()));
    };
    let address = parse(address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits
        .parse()
        .ok()
        .filter(|parsed: &u8| *parsed <= most && parsed.to_string() == bits)
        .ok_or_else(|| format!("a network has a number of bits from 0 to {most}, {bits:?} is none"))?;
    let network = Network { address, bits };
    let lowest = match address {
        IpAddr::V4(address) => {
            IpAddr::V4((address.to_bits() & !u32::MAX.checked_shr(bits.into()).unwrap_or(0)).into())
        }
        IpAddr::V6(address) => {
            IpAddr::V6((address.to_bits() & !u128::MAX.checked_shr(bits.into()).unwrap_or(0)).into())
        }
    };
    if lowest != address {
        return Err(format!(
            "{literal} is an address in a network: the network is {lowest}/{bits}"
        ));
    }
    Ok(Value::Network(network))
}

/// `YYYY-MM-DD`, optionally with `hh:mm`, seconds and decimals, after a blank or a T; a Z at the end may say UTC.
fn time(literal: &str, column: &str) -> Result<String, String> {
    let wrong = || format!("{column} is a time in UTC, {literal:?} is none: '2026-01-31 23:59:59.5'");
    let text = literal.strip_suffix('Z').unwrap_or(literal);
    let (date, clock) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let (clock, decimals) = clock.split_once('.').unwrap_or((clock, "0"));
    let fields = |text: &str, separator: char, widths: &[usize]| -> Option<Vec<u32>> {
        let parts: Vec<_> = text.split(separator).collect();
        let fits = parts.len() == widths.len()
            && parts
                .iter()
                .zip(widths)
                .all(|(part, &width)| part.len() == width && part.bytes().all(|b| b.is_ascii_digit()));
        if fits {
            parts.iter().map(|part| part.parse().ok()).collect()
        } else {
            None
        }
    };
    let date = fields(date, '-', &[4, 2, 2]).ok_or_else(wrong)?;
    let clock = match clock.len() {
        5 => fields(clock, ':', &[2, 2]),
        _ => fields(clock, ':', &[2, 2, 2]),
    };
    let clock = clock.ok_or_else(wrong)?;
    let second = clock.get(2).copied().unwrap_or(0);
    // The years that nanoseconds in 64 bits can tell apart, and that the store can.
    let in_range = (1970..=2261).contains(&date[0])
        && (1..=12).contains(&date[1])
        && (1..=days(date[0], date[1])).contains(&date[2])
        && clock[0] < 24
        && clock[1] < 60
        && second < 60;
    let decimals_fit = (1..=9).contains(&decimals.len()) && decimals.bytes().all(|b| b.is_ascii_digit());
    if !in_range || !decimals_fit {
        return Err(wrong());
    }
    let mut text = format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{second:02}",
        date[0], date[1], date[2], clock[0], clock[1]
    );
    let decimals = decimals.trim_end_matches('0');
    if !decimals.is_empty() {
        text.push('.');
        text.push_str(decimals);
    }
    Ok(text)
}

fn days(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The name that is a slip of the finger away: at most a third of its letters differ.
fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let distances = names.map(|name| (distance(&typed, name), name));
    distances
        .filter(|&(distance, name)| distance <= name.len().div_ceil(3))
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's: insertions, deletions and replacements of characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
