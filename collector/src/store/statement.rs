//! The pieces of SQL text that are put together from names: checked here, so that a name is never more than a name.

use super::StoreError;

/// A table, column or database name that needs no quoting.
pub(super) fn name(name: &str) -> Result<&str, StoreError> {
    let mut bytes = name.bytes();
    let starts = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
    if starts && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Ok(name);
    }
    Err(StoreError::rejected(format!(
        "{name:?} cannot be a name: use letters, digits and _"
    )))
}

/// The statement that a block of these columns belongs to. The rows never become part of it.
pub(super) fn insert(table: &str, token: &str, columns: &[&str]) -> Result<String, StoreError> {
    let table = name(table)?;
    for column in columns {
        name(column)?;
    }
    if token.is_empty()
        || !token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte))
    {
        return Err(StoreError::rejected(format!(
            "{token:?} cannot be a token: use letters, digits and - _ . : /"
        )));
    }
    let columns = columns.join(", ");
    Ok(format!(
        "INSERT INTO {table} ({columns}) SETTINGS insert_deduplication_token = '{token}'"
    ))
}

/// A string as the value of a `{name:String}` parameter: ClickHouse reads values in its escaped text form.
pub fn text_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => value.push_str("\\\\"),
            '\t' => value.push_str("\\t"),
            '\n' => value.push_str("\\n"),
            '\r' => value.push_str("\\r"),
            '\0' => value.push_str("\\0"),
            c => value.push(c),
        }
    }
    value
}

/// Numbers as the value of an array parameter.
pub(super) fn numbers_value(numbers: &[u64]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
    format!("[{}]", numbers.join(","))
}

/// Strings as the value of an array parameter.
pub(super) fn texts_value(texts: &[String]) -> String {
    let texts: Vec<_> = texts
        .iter()
        .map(|text| format!("'{}'", text_value(text).replace('\'', "\\'")))
        .collect();
    format!("[{}]", texts.join(","))
}

/// Of the values of one array in a statement, as they travel: parameters are in the URL, and a client's URL has 64 KiB at
/// most.
pub(super) const MAX_VALUES_BYTES: usize = 32 << 10;

/// What a number takes in an array in a URL at most, with its comma.
pub(super) const NUMBER_BYTES: usize = 20 + 3;

/// What a text takes in an array in a URL, with its quotes and its comma: what is neither a letter nor a digit takes three
/// bytes.
pub(super) fn text_bytes(text: &str) -> usize {
    let bytes = text_value(text).into_bytes();
    let in_url = bytes
        .iter()
        .map(|byte| if byte.is_ascii_alphanumeric() { 1 } else { 3 });
    9 + in_url.sum::<usize>() + 3 * text.matches('\'').count()
}

/// The values in parts that fit into one statement each. `bytes` is what one takes, in all arrays that it goes to.
pub(super) fn in_parts<T>(values: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = values;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |value: &&T| {
            sum += bytes(value);
            sum <= MAX_VALUES_BYTES
        };
        // One fits, whatever it is: names are short.
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (part, others) = rest.split_at(count);
        rest = others;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_more_than_a_name() {
        assert_eq!(name("connection_records").unwrap(), "connection_records");
        for bad in ["", "1a", "a.b", "a b", "a;b", "a'", "ä", "a`"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(insert("t", "a'b", &["c"]).is_err());
        assert!(insert("t", "a", &["c) VALUES (1"]).is_err());
    }

    #[test]
    fn arrays_are_quoted() {
        assert_eq!(numbers_value(&[1, 2]), "[1,2]");
        assert_eq!(
            texts_value(&["a'b".into(), "c\\d\n".into()]),
            "['a\\'b','c\\\\d\\n']"
        );
    }

    #[test]
    fn values_are_asked_for_in_parts_that_fit_into_a_url() {
        let texts: Vec<String> = (0..1_024).map(|number| format!("{number:0>255}'")).collect();
        let parts: Vec<_> = in_parts(&texts, |text| text_bytes(text)).collect();
        assert_eq!(parts.concat(), texts);
        for part in &parts {
            let query: String = url::form_urlencoded::byte_serialize(texts_value(part).as_bytes()).collect();
            assert!(query.len() <= MAX_VALUES_BYTES + 6, "{}", query.len());
        }
        assert!(parts.len() < 10, "{}", parts.len());
        assert_eq!(in_parts(&[], |_: &u64| 1).count(), 0);
        let numbers = [u64::MAX; 4_000];
        for part in in_parts(&numbers, |_| NUMBER_BYTES) {
            let query: String =
                url::form_urlencoded::byte_serialize(numbers_value(part).as_bytes()).collect();
            assert!(query.len() <= MAX_VALUES_BYTES + 6, "{}", query.len());
        }
    }

    #[test]
    fn an_insert_names_its_columns_and_its_token() {
        assert_eq!(
            insert("t", "9f-1", &["a", "b"]).unwrap(),
            "INSERT INTO t (a, b) SETTINGS insert_deduplication_token = '9f-1'"
        );
    }
}
