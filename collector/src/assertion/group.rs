//! Groups of nodes: expressions over their labels, such as `role = web and not zone in (a, b)`. A name alone is another
//! group; `node` is the node's own name; `all` is every node.

use std::collections::{BTreeMap, BTreeSet};

use super::condition::Fault;
use super::problem::instead;

/// The group that needs no definition.
pub const ALL: &str = "all";

/// Deepest nesting of brackets and `not`.
const DEPTH: usize = 32;

/// Which nodes belong to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    And(Vec<Members>),
    Or(Vec<Members>),
    Not(Box<Members>),
    /// A label that has one of these values. A node without it has none of them.
    Label {
        key: String,
        values: Vec<String>,
    },
    /// Another group. `character`: where its name stands, for faults.
    Group {
        name: String,
        character: usize,
    },
}

/// A node, as groups see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labelled {
    pub node: String,
    pub labels: BTreeMap<String, String>,
}

impl Members {
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut parser = Parser {
            tokens: tokens(text)?,
            next: 0,
        };
        let members = parser.any(0)?;
        match parser.peek() {
            (_, Token::End) => Ok(members),
            _ => parser.expected("`and`, `or` or the end"),
        }
    }

    /// Whether a node belongs to it. `is_of`: whether the node belongs to the group of that name.
    pub fn contains(&self, node: &Labelled, is_of: &impl Fn(&str) -> bool) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.contains(node, is_of)),
            Self::Or(parts) => parts.iter().any(|part| part.contains(node, is_of)),
            Self::Not(inner) => !inner.contains(node, is_of),
            Self::Label { key, values } if key == "node" => values.contains(&node.node),
            Self::Label { key, values } => node.labels.get(key).is_some_and(|value| values.contains(value)),
            Self::Group { name, .. } if name == ALL => true,
            Self::Group { name, .. } => is_of(name),
        }
    }

    /// The groups that it names, and where.
    pub fn groups(&self) -> Vec<(&str, usize)> {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::groups).collect(),
            Self::Not(inner) => inner.groups(),
            Self::Label { .. } => Vec::new(),
            Self::Group { name, character } => vec![(name, *character)],
        }
    }
}

/// Which nodes of a roster belong to each group. Worked out once for a roster, each group after those that it names: asked
/// anew at each mention, a few dozen groups that name each other twice would take longer than anybody waits.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    /// By group: whether it has the node of that place in the roster.
    groups: BTreeMap<String, Vec<bool>>,
}

impl Membership {
    /// `groups` holds every group that is named, and none that is defined by itself.
    pub fn of<'a>(
        groups: &BTreeMap<String, Members>,
        nodes: &(impl Iterator<Item = &'a Labelled> + Clone),
    ) -> Self {
        let mut membership = Self::default();
        for name in groups.keys() {
            membership.work_out(name, groups, nodes);
        }
        membership
    }

    fn work_out<'a>(
        &mut self,
        name: &str,
        groups: &BTreeMap<String, Members>,
        nodes: &(impl Iterator<Item = &'a Labelled> + Clone),
    ) {
        let Some(members) = groups.get(name) else {
            return;
        };
        if self.groups.contains_key(name) {
            return;
        }
        // Should a group lead back to itself after all, it has nobody there.
        self.groups.insert(name.to_owned(), Vec::new());
        for (inner, _) in members.groups() {
            self.work_out(inner, groups, nodes);
        }
        let each = nodes.clone().enumerate();
        let each = each.map(|(at, node)| self.contains(members, at, node)).collect();
        self.groups.insert(name.to_owned(), each);
    }

    /// Whether the node, which has that place in the roster, belongs to these.
    pub fn contains(&self, members: &Members, at: usize, node: &Labelled) -> bool {
        members.contains(node, &|name| {
            let of_group = self.groups.get(name).and_then(|nodes| nodes.get(at));
            of_group.copied().unwrap_or(false)
        })
    }
}

/// The first group that does not exist, or that is defined by itself: its name, the character of its definition, and
/// why.
pub fn fault(groups: &BTreeMap<String, Members>) -> Option<(String, Fault)> {
    for (name, members) in groups {
        for (inner, character) in members.groups() {
            if inner != ALL && !groups.contains_key(inner) {
                let known = groups.keys().map(String::as_str).chain([ALL]);
                let message = format!("there is no group `{inner}`, {}", instead(inner, known));
                return Some((name.clone(), Fault { character, message }));
            }
        }
    }
    groups.keys().find_map(|name| {
        let mut path = vec![name.as_str()];
        let character = circle(name, groups, &mut path, &mut BTreeSet::new())?;
        let message = format!("the group is defined by itself: {}", path.join(" -> "));
        Some((name.clone(), Fault { character, message }))
    })
}

/// Follows the groups until one leads back to the path's first, which is then its last too.
fn circle<'a>(
    name: &str,
    groups: &'a BTreeMap<String, Members>,
    path: &mut Vec<&'a str>,
    seen: &mut BTreeSet<&'a str>,
) -> Option<usize> {
    for (inner, character) in groups.get(name)?.groups() {
        if path.first() == Some(&inner) {
            path.push(inner);
            return Some(character);
        }
        if seen.insert(inner) {
            path.push(inner);
            if circle(inner, groups, path, seen).is_some() {
                return Some(character);
            }
            path.pop();
        }
    }
    None
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Equal,
    NotEqual,
    Open,
    Close,
    Comma,
    End,
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Fault> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let begin = at;
        at += 1;
        let token = match chars[begin] {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => {
                at += usize::from(chars.get(at) == Some(&'='));
                Token::Equal
            }
            '!' if chars.get(at) == Some(&'=') => {
                at += 1;
                Token::NotEqual
            }
            quote @ ('\'' | '"') => {
                let Some(length) = chars[at..].iter().position(|&c| c == quote) else {
                    return Err(Fault {
                        character: begin,
                        message: format!("this {quote} has no end"),
                    });
                };
                let word = chars[at..at + length].iter().collect();
                at += length + 1;
                Token::Word(word)
            }
            c if is_word(c) => {
                while chars.get(at).is_some_and(|&c| is_word(c)) {
                    at += 1;
                }
                Token::Word(chars[begin..at].iter().collect())
            }
            c => {
                return Err(Fault {
                    character: begin,
                    message: format!(
                        "expected a name, =, !=, `in`, `and`, `or`, `not` or a bracket, got {c:?}; a value with it stands in quotes"
                    ),
                });
            }
        };
        tokens.push((begin, token));
    }
    tokens.push((chars.len(), Token::End));
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-./:@".contains(c)
}

struct Parser {
    /// Ends in `End`, which is never passed.
    tokens: Vec<(usize, Token)>,
    next: usize,
}

impl Parser {
    fn any(&mut self, depth: usize) -> Result<Members, Fault> {
        let mut parts = vec![self.all(depth)?];
        while self.takes_word("or") {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Members::Or))
    }

    fn all(&mut self, depth: usize) -> Result<Members, Fault> {
        let mut parts = vec![self.one(depth)?];
        while self.takes_word("and") {
            parts.push(self.one(depth)?);
        }
        Ok(one_or(parts, Members::And))
    }

    fn one(&mut self, depth: usize) -> Result<Members, Fault> {
        if depth == DEPTH {
            return self.wrong(format!("nested deeper than {DEPTH}"));
        }
        if self.takes_word("not") {
            return Ok(Members::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.takes(&Token::Open) {
            let inner = self.any(depth + 1)?;
            return match self.takes(&Token::Close) {
                true => Ok(inner),
                false => self.expected("`and`, `or` or )"),
            };
        }
        let (character, name) = self.word("a label or a group")?;
        if self.takes(&Token::Equal) {
            let (_, value) = self.word("a value")?;
            return Ok(Members::Label {
                key: name,
                values: vec![value],
            });
        }
        if self.takes(&Token::NotEqual) {
            let (_, value) = self.word("a value")?;
            let label = Members::Label {
                key: name,
                values: vec![value],
            };
            return Ok(Members::Not(Box::new(label)));
        }
        let is_negated = self.takes_word("not");
        if self.takes_word("in") {
            let values = self.values()?;
            let label = Members::Label { key: name, values };
            return Ok(if is_negated {
                Members::Not(Box::new(label))
            } else {
                label
            });
        }
        if is_negated {
            return self.expected("`in`");
        }
        Ok(Members::Group { name, character })
    }

    fn values(&mut self) -> Result<Vec<String>, Fault> {
        if !self.takes(&Token::Open) {
            return self.expected("values in brackets");
        }
        let mut values = vec![self.word("a value")?.1];
        while self.takes(&Token::Comma) {
            values.push(self.word("a value")?.1);
        }
        match self.takes(&Token::Close) {
            true => Ok(values),
            false => self.expected(", or )"),
        }
    }

    fn word(&mut self, expected: &str) -> Result<(usize, String), Fault> {
        match self.peek().clone() {
            (character, Token::Word(word)) => {
                self.next += 1;
                Ok((character, word))
            }
            _ => self.expected(expected),
        }
    }

    fn peek(&self) -> &(usize, Token) {
        &self.tokens[self.next]
    }

    fn takes(&mut self, token: &Token) -> bool {
        let found = self.peek().1 == *token;
        self.next += usize::from(found);
        found
    }

    fn takes_word(&mut self, keyword: &str) -> bool {
        self.takes(&Token::Word(keyword.to_owned()))
    }

    fn expected<T>(&self, expected: &str) -> Result<T, Fault> {
        let got = match &self.peek().1 {
            Token::Word(word) => word.clone(),
            Token::Equal => "=".into(),
            Token::NotEqual => "!=".into(),
            Token::Open => "(".into(),
            Token::Close => ")".into(),
            Token::Comma => ",".into(),
            Token::End => "the end".into(),
        };
        self.wrong(format!("expected {expected}, got {got}"))
    }

    fn wrong<T>(&self, message: String) -> Result<T, Fault> {
        Err(Fault {
            character: self.peek().0,
            message,
        })
    }
}

fn one_or(mut parts: Vec<Members>, several: fn(Vec<Members>) -> Members) -> Members {
    if parts.len() == 1 {
        parts.swap_remove(0)
    } else {
        several(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, labels: &[(&str, &str)]) -> Labelled {
        Labelled {
            node: name.to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn groups(definitions: &[(&str, &str)]) -> BTreeMap<String, Members> {
        definitions
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Members::parse(text).expect(text)))
            .collect()
    }

    #[test]
    fn a_group_is_what_its_labels_say() {
        let groups = groups(&[("web", "role = web"), ("east", "zone in (a, 'b')")]);
        let check = |text: &str, expected: [bool; 3]| {
            let members = Members::parse(text).expect(text);
            let nodes = [
                node("web-1", &[("role", "web"), ("zone", "a")]),
                node("web-2", &[("role", "web"), ("zone", "c")]),
                node("db-1", &[("role", "db")]),
            ];
            let membership = Membership::of(&groups, &nodes.iter());
            let found: Vec<_> = nodes.iter().enumerate().collect();
            let found = found
                .iter()
                .map(|(at, node)| membership.contains(&members, *at, node));
            assert_eq!(found.collect::<Vec<_>>(), expected, "{text}");
        };
        check("web", [true, true, false]);
        check("all", [true, true, true]);
        check("web and not east", [false, true, false]);
        check("web and zone != c or node = db-1", [true, false, true]);
        check("not (role = web)", [false, false, true]);
        check("zone not in (a)", [false, true, true]);
    }

    #[test]
    fn groups_that_name_each_other_several_times_are_worked_out_once() {
        let mut definitions: Vec<(String, String)> = (0..60)
            .map(|at| {
                let next = format!("g{}", at + 1);
                (
                    format!("g{at}"),
                    format!("{next} or {next} or not {next} and {next}"),
                )
            })
            .collect();
        definitions.push(("g60".into(), "role = web".into()));
        let definitions: Vec<_> = definitions
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let groups = groups(&definitions);
        assert_eq!(fault(&groups), None);
        let nodes = [node("web-1", &[("role", "web")]), node("db-1", &[("role", "db")])];
        let membership = Membership::of(&groups, &nodes.iter());
        let first = Members::parse("g0").unwrap();
        assert!(membership.contains(&first, 0, &nodes[0]));
        assert!(!membership.contains(&first, 1, &nodes[1]));
    }

    #[test]
    fn a_group_that_is_defined_by_itself_is_a_fault() {
        let of = |definitions: &[(&str, &str)]| {
            fault(&groups(definitions)).map(|(name, fault)| (name, fault.message))
        };
        assert_eq!(of(&[("a", "b or x = 1"), ("b", "role = b")]), None);
        assert_eq!(
            of(&[("a", "x = 1 and b"), ("b", "not c"), ("c", "a")]),
            Some((
                "a".into(),
                "the group is defined by itself: a -> b -> c -> a".into()
            ))
        );
        assert_eq!(
            of(&[("web", "wbe")]),
            Some(("web".into(), "there is no group `wbe`, did you mean web?".into()))
        );
        assert_eq!(
            of(&[("x", "y"), ("y", "y")]),
            Some(("y".into(), "the group is defined by itself: y -> y".into()))
        );
    }

    #[test]
    fn a_fault_has_its_character() {
        for (text, character, message) in [
            ("", 0, "expected a label or a group, got the end"),
            ("role =", 6, "expected a value, got the end"),
            ("role web", 5, "expected `and`, `or` or the end, got web"),
            ("(a or b", 7, "expected `and`, `or` or ), got the end"),
            ("a in b", 5, "expected values in brackets, got b"),
            ("a = 'b", 4, "this ' has no end"),
            (
                "a ~ b",
                2,
                "expected a name, =, !=, `in`, `and`, `or`, `not` or a bracket, got '~'; a value with it stands in quotes",
            ),
        ] {
            let fault = Members::parse(text).expect_err(text);
            assert_eq!(
                (fault.character, fault.message.as_str()),
                (character, message),
                "{text}"
            );
        }
        assert!(Members::parse(&"(".repeat(100_000)).is_err());
    }
}
