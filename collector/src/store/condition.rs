//! Filters as SQL: names of columns that the schema declares, and parameters. No value becomes part of the text.

use std::net::IpAddr;

use super::{
    native::{self, Kind},
    statement,
};
use crate::filter::{self, Filter, Network, Operator, Unit, Value};

/// A condition, to be put after WHERE, and the parameters that it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    pub sql: String,
    pub params: Vec<(String, String)>,
}

impl Condition {
    /// True for every row.
    pub fn always() -> Self {
        Self {
            sql: "true".into(),
            params: vec![],
        }
    }

    pub fn of(filter: &Filter) -> Self {
        let mut condition = Self::default();
        condition.write(filter);
        condition
    }

    fn write(&mut self, filter: &Filter) {
        match filter {
            Filter::And(parts) => self.write_joined(parts, " AND "),
            Filter::Or(parts) => self.write_joined(parts, " OR "),
            Filter::Not(inner) => {
                // What is not known is not so, either.
                self.sql.push_str("NOT ifNull(");
                self.write(inner);
                self.sql.push_str(", false)");
            }
            Filter::Compare {
                column,
                operator,
                value,
            } => {
                let operator = match operator {
                    Operator::Equal => "=",
                    Operator::NotEqual => "!=",
                    Operator::Less => "<",
                    Operator::LessOrEqual => "<=",
                    Operator::Greater => ">",
                    Operator::GreaterOrEqual => ">=",
                };
                let value = self.value(value);
                self.sql.push_str(&format!("{column} {operator} {value}"));
            }
            Filter::In {
                column,
                negated,
                values,
            } => {
                // One comparison each rather than IN: a network is a range, and few values are typed by hand.
                let any: Vec<_> = values.iter().map(|value| self.matches(column, value)).collect();
                let not = if *negated { "NOT " } else { "" };
                let any = if any.is_empty() {
                    "false".to_owned()
                } else {
                    any.join(" OR ")
                };
                self.sql.push_str(&format!("{not}({any})"));
            }
            Filter::Like {
                column,
                negated,
                pattern,
            } => {
                let pattern = self.param("String", statement::text_value(pattern));
                let not = if *negated { "NOT " } else { "" };
                self.sql.push_str(&format!("{column} {not}LIKE {pattern}"));
            }
        }
    }

    fn write_joined(&mut self, parts: &[Filter], word: &str) {
        for (index, part) in parts.iter().enumerate() {
            self.sql.push_str(if index == 0 { "(" } else { word });
            self.write(part);
        }
        self.sql.push(')');
    }

    fn matches(&mut self, column: &str, value: &Value) -> String {
        if let Value::Network(network) = value {
            let (first, last) = network.range();
            let (first, last) = (self.address(first), self.address(last));
            return format!("{column} BETWEEN {first} AND {last}");
        }
        let value = self.value(value);
        format!("{column} = {value}")
    }

    fn value(&mut self, value: &Value) -> String {
        match value {
            Value::Number(number) => self.param("UInt64", number.to_string()),
            Value::Text(text) => self.param("String", statement::text_value(text)),
            Value::Word(word) => self.param("String", (*word).to_owned()),
            Value::Address(address) | Value::Network(Network { address, .. }) => self.address(*address),
            Value::Time(time) => self.param("DateTime64(9, 'UTC')", time.clone()),
        }
    }

    /// The store keeps IPv4 as ::ffff:a.b.c.d.
    fn address(&mut self, address: IpAddr) -> String {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        self.param("IPv6", address.to_string())
    }

    fn param(&mut self, kind: &str, value: String) -> String {
        let name = format!("p{}", self.params.len());
        let placeholder = format!("{{{name}:{kind}}}");
        self.params.push((name, value));
        placeholder
    }
}

/// What can be filtered by: columns with one comparable value a row.
pub fn filterable(columns: impl Iterator<Item = &'static native::Column>) -> Vec<filter::Column> {
    let unit = |name: &str| match name {
        name if name.ends_with("_us") => Unit::Microseconds,
        name if name.starts_with("bytes_") => Unit::Bytes,
        _ => Unit::One,
    };
    let number = |name, max| {
        Some(filter::Kind::Number {
            max,
            unit: unit(name),
        })
    };
    columns
        .filter_map(|column| {
            let kind = match column.kind {
                Kind::UInt8 => number(column.name, u8::MAX.into()),
                Kind::UInt16 => number(column.name, u16::MAX.into()),
                Kind::UInt32 | Kind::NullableUInt32 => number(column.name, u32::MAX.into()),
                Kind::UInt64 | Kind::NullableUInt64 => number(column.name, u64::MAX),
                Kind::Enum8(words) => Some(filter::Kind::Word(words)),
                Kind::DateTime64 => Some(filter::Kind::Time),
                Kind::IPv6 => Some(filter::Kind::Address),
                Kind::String | Kind::LowCardinality => Some(filter::Kind::Text),
                Kind::Bool
                | Kind::Int64
                | Kind::ArrayIPv6
                | Kind::Float64
                | Kind::ArrayUInt16
                | Kind::ArrayUInt32
                | Kind::ArrayUInt64
                | Kind::ArrayString
                | Kind::StringMap => None,
            };
            kind.map(|kind| filter::Column {
                name: column.name,
                kind,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    fn check(filter: &str, sql: &str, params: &[&str]) {
        let columns = filterable(schema::connections());
        let condition = Condition::of(&Filter::parse(filter, &columns).unwrap());
        assert_eq!(condition.sql, sql);
        assert_eq!(
            condition
                .params
                .iter()
                .map(|(_, value)| value.as_str())
                .collect::<Vec<_>>(),
            params
        );
    }

    #[test]
    fn values_are_parameters() {
        check(
            "remote_port = 5432 and comm = 'a''; DROP TABLE t --\\'",
            "(remote_port = {p0:UInt64} AND comm = {p1:String})",
            &["5432", "a'; DROP TABLE t --\\\\"],
        );
        check(
            "not (outcome = refused or connect_us > 1ms)",
            "NOT ifNull((outcome = {p0:String} OR connect_us > {p1:UInt64}), false)",
            &["refused", "1000"],
        );
        check("comm not like 'x%'", "comm NOT LIKE {p0:String}", &["x%"]);
        check(
            "opened_at < '2026-01-01'",
            "opened_at < {p0:DateTime64(9, 'UTC')}",
            &["2026-01-01 00:00:00"],
        );
    }

    #[test]
    fn addresses_are_compared_as_the_store_keeps_them() {
        check(
            "remote_ip = 10.0.0.1",
            "remote_ip = {p0:IPv6}",
            &["::ffff:10.0.0.1"],
        );
        check(
            "remote_ip not in (10.0.0.0/8, ::1)",
            "NOT (remote_ip BETWEEN {p0:IPv6} AND {p1:IPv6} OR remote_ip = {p2:IPv6})",
            &["::ffff:10.0.0.0", "::ffff:10.255.255.255", "::1"],
        );
    }
}
