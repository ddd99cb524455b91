//! What agents of earlier revisions say and hear means the same today: within one protocol, messages are only added to.
use std::path::Path;

use protox::prost_reflect::{DescriptorPool, EnumDescriptor, MessageDescriptor};

/// The first revision of this protocol whose agents deliver to today's collector, one from when most streams were there, and the
/// last one that was kept.
///
/// With each release, and before another change of the .proto file goes out to agents: keep the file as it is then, without its
/// comments, and add it here and in the collector's `tests/it/earlier.rs`. What came after the last one may be renumbered unnoticed.
const EARLIER: [&str; 3] = ["5f9364c", "438144c", "0c1c07b"];

#[test]
fn what_an_earlier_revision_knows_has_its_name_its_number_and_its_kind() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let today = pool(&root.join("proto"), "holdfast/v1.proto");
    for revision in EARLIER {
        let earlier = pool(&root.join("tests/earlier"), &format!("{revision}.proto"));
        let faults: Vec<String> = earlier
            .all_messages()
            .flat_map(|message| changed(&message, &today))
            .chain(earlier.all_enums().flat_map(|of| renumbered(&of, &today)))
            .collect();
        assert!(
            faults.is_empty(),
            "agents of {revision} would be misunderstood: {faults:#?}; give new fields new numbers, or raise PROTOCOL"
        );
    }
}

/// What of a message means something else today.
fn changed(earlier: &MessageDescriptor, today: &DescriptorPool) -> Vec<String> {
    let name = earlier.full_name();
    let Some(today) = today.get_message_by_name(name) else {
        return vec![format!("{name} is gone")];
    };
    let changed = earlier.fields().filter_map(|field| {
        let described = format!("{name}.{} = {}", field.name(), field.number());
        match today.get_field(field.number()) {
            None => Some(format!("{described} is gone")),
            Some(found) if found.name() != field.name() => {
                Some(format!("{described} is called {} today", found.name()))
            }
            Some(found)
                if format!("{:?} {:?}", found.cardinality(), found.kind())
                    != format!("{:?} {:?}", field.cardinality(), field.kind()) =>
            {
                Some(format!("{described} is of another kind today"))
            }
            Some(_) => None,
        }
    });
    changed.collect()
}

fn renumbered(earlier: &EnumDescriptor, today: &DescriptorPool) -> Vec<String> {
    let name = earlier.full_name();
    let Some(today) = today.get_enum_by_name(name) else {
        return vec![format!("{name} is gone")];
    };
    let renumbered = earlier.values().filter(|value| {
        today
            .get_value(value.number())
            .is_none_or(|found| found.name() != value.name())
    });
    renumbered
        .map(|value| format!("{} = {}", value.full_name(), value.number()))
        .collect()
}

fn pool(include: &Path, source: &str) -> DescriptorPool {
    let files = protox::compile([source], [include]).expect("the .proto file parses");
    DescriptorPool::from_file_descriptor_set(files).expect("a descriptor")
}
