//! What a person's SQL may contain. Pure: it judges the syntax tree that ClickHouse's own parser prints for the
//! statement (`EXPLAIN AST`), which runs nothing.
//!
//! `readonly = 1` is the first line: it refuses writes, settings, and table functions that reach outside. It lets
//! pass what this module refuses: scalar functions that open files or call services (`SELECT file('/etc/shadow')`
//! works with `readonly = 1`), functions in places that the printed tree does not show, and statements about
//! names that are files (with the engine as a library, `EXISTS "/etc/shadow"` looks at the disk).

/// The statements that are allowed, by the first word of the tree.
const STATEMENTS: &[&str] = &[
    "SelectWithUnionQuery",
    "SelectIntersectExceptQuery",
    "DescribeQuery",
    "Explain",
    "ShowTables",
    "ShowColumns",
    "ShowIndexes",
    "ShowFunctions",
    "ShowProcesslistQuery",
    "ShowCreateTableQuery",
    "ShowCreateViewQuery",
];

/// The table functions that are allowed: they make rows out of nothing or out of a SELECT that is in the tree too.
/// Others read files, networks or other servers, or take declarations of columns whose defaults can.
const TABLE_FUNCTIONS: &[&str] = &[
    "numbers",
    "numbers_mt",
    "zeros",
    "zeros_mt",
    "generateseries",
    "generate_series",
    "primes",
    "view",
];

/// Functions that reach beyond the database: they read files, load models, or call services. In lower case.
const FUNCTIONS: &[&str] = &[
    "file",
    "catboostevaluate",
    "hascolumnintable",
    "showcertificate",
    "generateserialid",
    "aiclassify",
    "aiembed",
    "aiextract",
    "aigenerate",
    "aitranslate",
];

/// Refuses a statement that does more than read the database; the error says what.
///
/// `tree` is the answer of `EXPLAIN AST`: a node per line, one blank of indentation per level.
pub(super) fn check(sql: &str, tree: &str) -> Result<(), String> {
    let statement = tree.split_whitespace().next().unwrap_or_default();
    if !STATEMENTS.contains(&statement) {
        return Err("only statements that read are allowed: SELECT, SHOW, DESCRIBE, EXPLAIN".into());
    }
    // The tree does not show their conditions, where a call needs a parenthesis, and their names can be paths.
    if statement.starts_with("Show") && sql.contains(['(', '/']) {
        return Err("functions and paths are not allowed in SHOW: use SELECT from a system table".into());
    }
    let mut parent = "";
    for line in tree.lines() {
        let node = line.trim_start();
        let (kind, rest) = node.split_once(' ').unwrap_or((node, ""));
        let name = rest.split([' ', '(']).next().unwrap_or_default();
        let lower = name.to_lowercase();
        match kind {
            "Function" if parent == "TableExpression" && !TABLE_FUNCTIONS.contains(&lower.as_str()) => {
                return Err(format!(
                    "the table function {name} is not allowed: it can reach beyond the database"
                ));
            }
            // The name of a function also serves as a lambda, and as such is an identifier.
            "Function" | "Identifier" if FUNCTIONS.contains(&lower.as_str()) => {
                return Err(format!(
                    "the function {name} is not allowed: it can reach beyond the database"
                ));
            }
            // Next to the SELECT itself stands only the name of a file (a format is an identifier).
            "Literal" if line.starts_with(" Literal") => return Err("INTO OUTFILE is not allowed".into()),
            "ColumnsApplyTransformer" => return Err("APPLY is not allowed: write the functions out".into()),
            "Set" => return Err("settings cannot be changed here".into()),
            _ => {}
        }
        parent = kind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_opens_files_is_refused_wherever_it_stands() {
        for tree in [
            "SelectWithUnionQuery (children 1)\n Function file (children 1)",
            "SelectWithUnionQuery (children 1)\n Function FILE (children 1)",
            "SelectWithUnionQuery (children 1)\n  Function arrayMap (children 1)\n   Identifier file\n",
        ] {
            assert!(check("", tree).unwrap_err().contains("is not allowed"), "{tree}");
        }
    }

    #[test]
    fn table_functions_are_refused_unless_they_are_known_to_be_harmless() {
        let tree = |name: &str| {
            format!("SelectWithUnionQuery\n TableExpression (children 1)\n  Function {name} (children 1)")
        };
        assert_eq!(check("", &tree("numbers")), Ok(()));
        assert!(
            check("", &tree("url"))
                .unwrap_err()
                .contains("the table function url")
        );
        assert!(check("", &tree("invented_tomorrow")).is_err());
    }

    #[test]
    fn only_statements_that_read_pass() {
        for tree in [
            "DropQuery",
            "Set",
            "UseQuery d",
            "KillQueryQuery",
            "ExistsTableQuery d t",
            "CheckQuery",
            "",
        ] {
            assert!(
                check("", tree)
                    .unwrap_err()
                    .starts_with("only statements that read"),
                "{tree}"
            );
        }
        assert_eq!(check("SHOW TABLES", "ShowTables"), Ok(()));
        assert!(check("SHOW TABLES WHERE file('x') = ''", "ShowTables").is_err());
    }

    #[test]
    fn an_answer_does_not_go_into_a_file() {
        let tree = |child: &str| {
            format!("SelectWithUnionQuery (children 2)\n ExpressionList\n   Literal UInt64_1\n {child}")
        };
        assert_eq!(check("", &tree("Identifier JSON")), Ok(()));
        assert!(check("", &tree("Literal 'x'")).is_err());
    }

    #[test]
    fn an_alias_cannot_hide_the_node_below_it() {
        let tree = "SelectWithUnionQuery\n TableExpression (children 1)\n  Function url (alias a\n  Function numbers)";
        assert!(check("", tree).is_err());
    }
}
