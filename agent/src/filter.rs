//! Which devices or events a caller wants: a subset of AIP-160.
//!
//! ```text
//! expression = factor { AND factor }        OR binds closer than AND, as in AIP-160
//! factor     = term { OR term }
//! term       = [NOT | -] ( "(" expression ")" | restriction )
//! restriction = field ( = | != ) value | labels : key
//! ```
//!
//! A field is a name of the schema, or `labels.KEY`; a value is a word or in quotes. What is not understood is refused with
//! its place and what to write instead. Length, depth and number of comparisons are bounded, so that a filter costs little
//! however it is written.

use std::collections::BTreeMap;

use crate::schema::quoted;

const MAX_BYTES: usize = 2048;
const MAX_DEPTH: usize = 16;
const MAX_RESTRICTIONS: usize = 64;

/// What filters can ask for of one kind of thing.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) fields: &'static [Field],
    pub(crate) has_labels: bool,
}

/// A field of a schema.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// All values that there are; empty: any.
    pub(crate) values: &'static [&'static str],
    /// What a value begins with.
    pub(crate) prefix: &'static str,
}

impl Field {
    /// A field of any text.
    pub(crate) const fn text(name: &'static str) -> Self {
        Self::name(name, "")
    }

    /// A field of texts that begin so.
    pub(crate) const fn name(name: &'static str, prefix: &'static str) -> Self {
        let values = &[];
        Self {
            name,
            values,
            prefix,
        }
    }

    /// A field of these values.
    pub(crate) const fn one_of(name: &'static str, values: &'static [&'static str]) -> Self {
        let prefix = "";
        Self {
            name,
            values,
            prefix,
        }
    }
}

/// What can be asked of a thing: the values of its schema's fields, in their order, and its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) fields: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at position {position}: {why}")]
pub(crate) struct Error {
    /// In characters, from 1.
    position: usize,
    why: String,
}

/// Which things to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter(Option<Expression>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    /// The field with this index has this value.
    Field(usize, String),
    Label(String, String),
    HasLabel(String),
}

impl Filter {
    /// Reads a filter. An empty one takes everything.
    pub(crate) fn parse(text: &str, schema: &Schema) -> Result<Self, Error> {
        let mut parser = Parser {
            text,
            at: 0,
            schema,
            restrictions: 0,
        };
        if text.len() > MAX_BYTES {
            let why = format!("{} bytes; at most {MAX_BYTES} are allowed", text.len());
            return Err(parser.error(0, why));
        }
        if parser.peek().is_none() {
            return Ok(Self(None));
        }
        let expression = parser.expression(MAX_DEPTH)?;
        match parser.peek() {
            None => Ok(Self(Some(expression))),
            Some(_) => {
                let why = "write AND or OR between two comparisons, and nothing after the last one";
                Err(parser.error(parser.at, why))
            }
        }
    }

    /// Whether it takes everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it takes this.
    pub(crate) fn matches(&self, facts: &Facts) -> bool {
        self.0.as_ref().is_none_or(|it| it.matches(facts))
    }
}

impl Expression {
    fn matches(&self, facts: &Facts) -> bool {
        match self {
            Self::All(them) => them.iter().all(|it| it.matches(facts)),
            Self::Any(them) => them.iter().any(|it| it.matches(facts)),
            Self::Not(it) => !it.matches(facts),
            Self::Field(index, value) => facts.fields.get(*index) == Some(value),
            Self::Label(key, value) => facts.labels.get(key) == Some(value),
            Self::HasLabel(key) => facts.labels.contains_key(key),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
    schema: &'a Schema,
    restrictions: usize,
}

/// What a word is made of without quotes.
fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || "_./-".contains(character)
}

impl<'a> Parser<'a> {
    fn error(&self, at: usize, why: impl Into<String>) -> Error {
        let position = self.text[..at].chars().count() + 1;
        let why = why.into();
        Error { position, why }
    }

    /// The next character that is no blank.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    /// Takes a text that is next, if it is.
    fn take(&mut self, text: &str) -> bool {
        let is_next = self.peek().is_some() && self.text[self.at..].starts_with(text);
        self.at += if is_next { text.len() } else { 0 };
        is_next
    }

    /// Takes a word that is next, if it is; not one that only begins so.
    fn take_word(&mut self, word: &str) -> bool {
        let begin = self.at;
        let ends = |rest: &str| !rest.starts_with(|it| is_plain(it) || "=!:".contains(it));
        if self.take(word) && ends(&self.text[self.at..]) {
            return true;
        }
        self.at = begin;
        false
    }

    fn expression(&mut self, depth: usize) -> Result<Expression, Error> {
        let mut factors = vec![self.factor(depth)?];
        while self.take_word("AND") {
            factors.push(self.factor(depth)?);
        }
        Ok(one_or(factors, Expression::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Expression, Error> {
        let mut terms = vec![self.term(depth)?];
        while self.take_word("OR") {
            terms.push(self.term(depth)?);
        }
        Ok(one_or(terms, Expression::Any))
    }

    fn term(&mut self, depth: usize) -> Result<Expression, Error> {
        let Some(deeper) = depth.checked_sub(1) else {
            let why = format!("parentheses and NOT deeper than {MAX_DEPTH}: write it flatter");
            return Err(self.error(self.at, why));
        };
        if self.take_word("NOT") || self.take("-") {
            return Ok(Expression::Not(Box::new(self.term(deeper)?)));
        }
        let open = self.at;
        if self.take("(") {
            let inner = self.expression(deeper)?;
            if !self.take(")") {
                return Err(self.error(open, "this parenthesis is not closed"));
            }
            return Ok(inner);
        }
        self.restriction()
    }

    fn restriction(&mut self) -> Result<Expression, Error> {
        self.restrictions += 1;
        self.peek();
        let begin = self.at;
        if self.restrictions > MAX_RESTRICTIONS {
            let why = format!("more than {MAX_RESTRICTIONS} comparisons: ask for fewer at a time");
            return Err(self.error(begin, why));
        }
        let name = self.plain();
        if self.schema.has_labels && name == "labels" && self.take(":") {
            return Ok(Expression::HasLabel(self.value("the key of a label")?));
        }
        let key = match name.strip_prefix("labels.") {
            Some(rest) if self.schema.has_labels => Some(self.label_key(rest)?),
            _ => None,
        };
        let field = self.schema.fields.iter().position(|it| it.name == name);
        if key.is_none() && field.is_none() {
            return Err(self.unknown(begin, name));
        }
        let is_unequal = self.take("!=");
        if !is_unequal && !self.take("=") {
            return Err(self.error(self.at, "write = or != and a value after the field"));
        }
        self.peek();
        let at = self.at;
        let value = self.value("a value, such as \"x\"")?;
        let equal = match (key, field) {
            (Some(key), _) => Expression::Label(key, value),
            (None, field) => {
                let index = field.unwrap_or_default();
                self.check(at, &self.schema.fields[index], &value)?;
                Expression::Field(index, value)
            }
        };
        Ok(match is_unequal {
            true => Expression::Not(Box::new(equal)),
            false => equal,
        })
    }

    fn unknown(&self, at: usize, name: &str) -> Error {
        let mut known: Vec<_> = self.schema.fields.iter().map(|it| it.name).collect();
        known.extend(self.schema.has_labels.then_some("labels.KEY"));
        let known = known.join(", ");
        let why = match name {
            "" => format!("write a field here; there are: {known}"),
            name => format!("{} is no field; there are: {known}", quoted(name)),
        };
        self.error(at, why)
    }

    /// A label's key, of which this much was read already: the rest may be in quotes or backticks.
    fn label_key(&mut self, read: &str) -> Result<String, Error> {
        let quote = self.text[self.at..].starts_with(['"', '\'', '`']);
        match (read, quote) {
            ("", true) => self.value("the key of a label"),
            ("", false) => Err(self.error(self.at, "write the label's key, as in labels.app")),
            (read, _) => Ok(read.to_owned()),
        }
    }

    fn check(&self, at: usize, field: &Field, value: &str) -> Result<(), Error> {
        let Field {
            name,
            values,
            prefix,
        } = field;
        if !values.is_empty() && !values.contains(&value) {
            let known = values.join(", ");
            let why = format!("{} is no {name}; there are: {known}", quoted(value));
            return Err(self.error(at, why));
        }
        if !value.starts_with(prefix) {
            let why = format!(
                "a {name} begins with {prefix}, as in {}",
                quoted(&format!("{prefix}{value}"))
            );
            return Err(self.error(at, why));
        }
        Ok(())
    }

    /// The word that is next; it may be empty.
    fn plain(&mut self) -> &'a str {
        self.peek();
        let rest = &self.text[self.at..];
        let end = rest.find(|it| !is_plain(it)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// A word, or a text in quotes in which a backslash takes the next character as it is.
    fn value(&mut self, what: &str) -> Result<String, Error> {
        let begin_quote = self.peek().filter(|it| "\"'`".contains(*it));
        let begin = self.at;
        let Some(quote) = begin_quote else {
            let word = self.plain().to_owned();
            if self.text[self.at..].starts_with('*') {
                return Err(self.error(self.at, "there are no wildcards: write values whole"));
            }
            return match &*word {
                "" => Err(self.error(begin, format!("write {what} here"))),
                "AND" | "OR" | "NOT" => {
                    let why = format!("write {what} here; {word} as a value goes in quotes");
                    Err(self.error(begin, why))
                }
                _ => Ok(word),
            };
        };
        let mut value = String::new();
        let mut characters = self.text[begin + 1..].char_indices();
        while let Some((offset, character)) = characters.next() {
            if character == quote {
                self.at = begin + 1 + offset + 1;
                return Ok(value);
            }
            match character {
                '\\' => value.extend(characters.next().map(|(_, it)| it)),
                _ => value.push(character),
            }
        }
        Err(self.error(begin, "this quote is not closed"))
    }
}

fn one_or(mut them: Vec<Expression>, all: fn(Vec<Expression>) -> Expression) -> Expression {
    match them.len() {
        1 => them.remove(0),
        _ => all(them),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCHEMA: Schema = Schema {
        fields: &[
            Field::name("name", "devices/"),
            Field::one_of("state", &["READY", "FAILED"]),
            Field::text("model"),
        ],
        has_labels: true,
    };

    fn facts() -> Facts {
        let labels = [("app", "x"), ("k/ey", "1"), ("empty", "")];
        Facts {
            fields: ["devices/a", "READY", "e1000"].map(str::to_owned).to_vec(),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    fn matches(text: &str) -> bool {
        Filter::parse(text, &SCHEMA).unwrap().matches(&facts())
    }

    #[test]
    fn filters_take_what_they_say() {
        for text in [
            "",
            "  ",
            "state = \"READY\" AND labels.app = \"x\" AND model = \"e1000\"",
            "state=READY",
            "state != FAILED",
            "NOT state = FAILED",
            "-state = FAILED",
            "name = 'devices/a'",
            "labels:app",
            "NOT labels:none",
            "labels.\"k/ey\" = 1",
            "labels.`k/ey` = \"1\"",
            "labels.k/ey = 1",
            "labels:`k/ey`",
            "labels.empty = \"\"",
            "labels.none != x",
            "(state = FAILED OR model = e1000) AND labels.app = x",
            "((state = READY))",
            "model = \"e\\1000\"",
        ] {
            assert!(matches(text), "{text}");
        }
        for text in [
            "state = FAILED",
            "model = e1000 AND state = FAILED",
            "labels:none",
            "labels.none = \"\"",
            "labels.app != x",
            "NOT (state = READY OR state = FAILED)",
            // OR binds closer.
            "state = READY OR model = e1000 AND state = FAILED",
        ] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_place_and_cure() {
        let deep = "(".repeat(1000);
        let many = vec!["model=a"; 65].join(" OR ");
        let long = "x".repeat(3000);
        for (text, position, cure) in [
            ("colour = red", 1, "name, state, model, labels.KEY"),
            ("state = READ", 9, "READY, FAILED"),
            ("state READY", 7, "= or !="),
            ("state = READY model = a", 15, "AND or OR"),
            ("state = READY AND", 18, "write a field"),
            ("(state = READY", 1, "not closed"),
            ("model = \"é", 9, "not closed"),
            ("name = \"a\"", 8, "\"devices/a\""),
            ("model = e*", 10, "wildcards"),
            ("model = ", 9, "a value"),
            ("model = AND", 9, "quotes"),
            ("labels. = x", 8, "labels.app"),
            ("labels = x", 1, "labels.KEY"),
            ("é = x", 1, "is no field"),
            (&deep, 17, "flatter"),
            (&many, 705, "64 comparisons"),
            (&long, 1, "2048"),
        ] {
            let error = Filter::parse(text, &SCHEMA).unwrap_err();
            assert!(error.why.contains(cure), "{text:.40}: {error}");
            assert_eq!(error.position, position, "{text:.40}: {error}");
        }
    }

    /// Text of an expression, and whether it takes `facts()`.
    fn expressions() -> impl Strategy<Value = (String, bool)> {
        let leaf = prop_oneof![
            Just(("state = READY".to_owned(), true)),
            Just(("state != \"READY\"".to_owned(), false)),
            Just(("labels:app".to_owned(), true)),
            Just(("labels.app = 'y'".to_owned(), false)),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone())
                    .prop_map(|((a, x), (b, y))| (format!("({a}) AND ({b})"), x && y)),
                (inner.clone(), inner.clone())
                    .prop_map(|((a, x), (b, y))| (format!("({a})OR({b})"), x || y)),
                inner.prop_map(|(a, x)| (format!("NOT ({a})"), !x)),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_expression_means_what_its_parts_mean((text, expected) in expressions()) {
            prop_assert_eq!(matches(&text), expected, "{}", text);
        }

        #[test]
        fn no_text_is_too_much(text in "[a-zA-Zé=!:()\"'`\\\\ .*-]{0,60}|(state|AND|OR|NOT|=|!=|READY|\\(|\\)| |labels|:|\\.|\"){0,40}") {
            if let Err(error) = Filter::parse(&text, &SCHEMA) {
                prop_assert!(error.position <= text.chars().count() + 1);
            }
        }
    }
}
