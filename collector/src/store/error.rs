//! What ClickHouse's errors mean to callers: whether the same request can succeed later, and one line that says what
//! went wrong. Both stores turn every failure into a [`StoreError`] here.

use super::{StoreError, layout::LEASE_ENDED};

/// Codes that speak of the server's state and not of the statement (ClickHouse, src/Common/ErrorCodes.cpp). All
/// others are the fault of the statement or of the data.
const UNAVAILABLE: &[u32] = &[
    74,   // CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,   // CANNOT_WRITE_TO_FILE_DESCRIPTOR
    76,   // CANNOT_OPEN_FILE
    95,   // CANNOT_READ_FROM_SOCKET
    96,   // CANNOT_WRITE_TO_SOCKET
    159,  // TIMEOUT_EXCEEDED
    202,  // TOO_MANY_SIMULTANEOUS_QUERIES
    203,  // NO_FREE_CONNECTION
    209,  // SOCKET_TIMEOUT
    210,  // NETWORK_ERROR
    225,  // NO_ZOOKEEPER
    236,  // ABORTED
    241,  // MEMORY_LIMIT_EXCEEDED
    242,  // TABLE_IS_READ_ONLY
    244,  // UNEXPECTED_ZOOKEEPER_ERROR
    252,  // TOO_MANY_PARTS
    279,  // ALL_CONNECTION_TRIES_FAILED
    285,  // TOO_FEW_LIVE_REPLICAS
    286,  // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    289,  // REPLICA_IS_NOT_IN_QUORUM
    319,  // UNKNOWN_STATUS_OF_INSERT
    394,  // QUERY_WAS_CANCELLED
    425,  // SYSTEM_ERROR
    439,  // CANNOT_SCHEDULE_TASK
    516,  // AUTHENTICATION_FAILED
    999,  // KEEPER_EXCEPTION
    1000, // POCO_EXCEPTION
];

/// Room for a part is reserved before anything of it is written (src/Storages/MergeTree/MergeTreeData.cpp, reserveSpace): by
/// what the block takes in memory, and a mebibyte at least.
const NOT_ENOUGH_SPACE: u32 = 243;

/// What follows in a syntax error: every token of ClickHouse's grammar that would have done.
const EXPECTED_TOKENS: &str = " Expected one of: ";

/// Longest message that is passed on.
const MESSAGE_CHARS: usize = 600;

impl StoreError {
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
        }
    }

    /// Refused by us, before ClickHouse saw it.
    pub(super) fn rejected(message: impl Into<String>) -> Self {
        Self::Rejected {
            code: 0,
            message: message.into(),
        }
    }

    /// Classifies an error in ClickHouse's own words.
    pub(super) fn from_clickhouse(text: &str) -> Self {
        let message = one_line(text);
        match code(text) {
            Some(395) if message.contains(LEASE_ENDED) => Self::LeaseEnded,
            Some(NOT_ENOUGH_SPACE) => Self::Full { message },
            Some(code) if UNAVAILABLE.contains(&code) => Self::Unavailable { message },
            Some(code) => Self::Rejected { code, message },
            None => Self::Rejected { code: 0, message },
        }
    }
}

/// The number in `Code: 62. DB::Exception: ...`.
fn code(text: &str) -> Option<u32> {
    let digits = text.split_once("Code: ")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits[..end].parse().ok()
}

/// Without the decoration that says nothing to a reader: codes, exception classes, versions, line breaks.
fn one_line(text: &str) -> String {
    let mut rest = text.trim();
    while let Some((_, after)) = rest
        .strip_prefix("Code: ")
        .and_then(|numbered| numbered.split_once("DB::Exception: "))
    {
        rest = after;
    }
    let rest = rest.strip_prefix("default: ").unwrap_or(rest);
    let mut line = String::with_capacity(rest.len());
    let mut last = "";
    for word in without_versions(rest).split_whitespace() {
        // The name of the error, once for each layer that it went through.
        if word == last && word.starts_with('(') {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        last = word;
    }
    if let Some(end) = line.find(EXPECTED_TOKENS) {
        line.truncate(end);
    }
    if let Some((end, _)) = line.char_indices().nth(MESSAGE_CHARS) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// ClickHouse ends messages with `(version 26.7.2.1 (official build))`, nested ones too.
fn without_versions(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("(version ") {
        out.push_str(&rest[..start]);
        let mut depth = 0_usize;
        let end = rest[start..].char_indices().find_map(|(at, c)| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(start + at + c.len_utf8())
        });
        let Some(end) = end else { return out };
        rest = rest[end..].trim_start_matches('.');
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(format!("{:?}", StoreError::from_clickhouse(text)), expected);
    }

    #[test]
    fn an_error_keeps_its_code_and_loses_its_decoration() {
        check(
            "Code: 62. DB::Exception: Syntax error: failed at position 8 (x)\n: x. (SYNTAX_ERROR) (version 26.7.2.1)",
            "Rejected { code: 62, message: \"Syntax error: failed at position 8 (x) : x. (SYNTAX_ERROR)\" }",
        );
        check(
            "Code: 164. DB::Exception: Code: 164. DB::Exception: Cannot modify 'readonly' setting in readonly mode. \
             (READONLY) (version 26.7.2.1 (official build)). (READONLY)",
            "Rejected { code: 164, message: \"Cannot modify 'readonly' setting in readonly mode. (READONLY)\" }",
        );
    }

    #[test]
    fn a_syntax_error_ends_where_the_grammar_begins() {
        check(
            "Code: 62. DB::Exception: Syntax error: failed at position 1 (SELEC): SELEC 1. Expected one of: Query, SELECT, \
             WITH. (SYNTAX_ERROR) (version 26.7.2.1)",
            "Rejected { code: 62, message: \"Syntax error: failed at position 1 (SELEC): SELEC 1.\" }",
        );
    }

    #[test]
    fn what_the_store_says_of_itself_is_worth_another_try() {
        // A password that was changed is no reason to throw rows away.
        check(
            "Code: 516. DB::Exception: holdfast: Authentication failed. (AUTHENTICATION_FAILED)",
            "Unavailable { message: \"holdfast: Authentication failed. (AUTHENTICATION_FAILED)\" }",
        );
        check(
            "Code: 243. DB::Exception: Cannot reserve 1.00 MiB. (NOT_ENOUGH_SPACE)",
            "Full { message: \"Cannot reserve 1.00 MiB. (NOT_ENOUGH_SPACE)\" }",
        );
        check(
            "Code: 252. DB::Exception: Too many parts (TOO_MANY_PARTS)",
            "Unavailable { message: \"Too many parts (TOO_MANY_PARTS)\" }",
        );
    }

    #[test]
    fn an_insert_that_was_late_is_told_from_a_throw_of_a_person() {
        check(
            "Code: 395. DB::Exception: the lease of this insert has ended: while executing 'FUNCTION throwIf(_CAST(1))'. \
             (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO) (version 26.7.2.1)",
            "LeaseEnded",
        );
        check(
            "Code: 395. DB::Exception: mine. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)",
            "Rejected { code: 395, message: \"mine. (FUNCTION_THROW_IF_VALUE_IS_NON_ZERO)\" }",
        );
    }

    #[test]
    fn an_error_without_a_code_is_kept_as_it_is() {
        check(
            "something else",
            "Rejected { code: 0, message: \"something else\" }",
        );
        check("(version without end", "Rejected { code: 0, message: \"\" }");
    }
}
