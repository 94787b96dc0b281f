//! The rules of kinds, as users meet them: an object, one fault in it, the text of the answer.

mod extension;
mod nodes;
mod pods;
mod policies;
mod services;
mod workloads;

use std::fmt::Write;

use rkube_api::Kind;
use rkube_apimachinery::field::ErrorList;
use serde_json::Value;

/// A valid object of a kind, and its rules.
pub struct Subject<K> {
    pub object: Value,
    pub defaults: fn(&mut K),
    pub validate: fn(&K) -> ErrorList,
    pub validate_update: fn(&K, &K) -> ErrorList,
}

/// Where a change goes, and what it puts there; null takes away.
pub type Change = (&'static str, Value);

impl<K: Kind> Subject<K> {
    fn object(&self, change: Option<&Change>) -> K {
        let mut value = self.object.clone();
        if let Some((pointer, new)) = change {
            put(&mut value, pointer, new.clone());
        }
        let mut object = K::from_value(value).expect("the test's object decodes");
        (self.defaults)(&mut object);
        object
    }

    /// What is wrong with each of the changed objects, when they are new.
    pub fn creates(&self, changes: &[Change]) -> String {
        assert_eq!(lines(&(self.validate)(&self.object(None))), Vec::<String>::new(), "the object is valid");
        let mut text = String::new();
        for change in changes {
            show(&mut text, change, &(self.validate)(&self.object(Some(change))));
        }
        text
    }

    /// What is wrong with making each of the changes to the object that is there.
    pub fn updates(&self, changes: &[Change]) -> String {
        let old = self.object(None);
        assert_eq!(lines(&(self.validate_update)(&old, &old)), Vec::<String>::new(), "no change is a valid one");
        let mut text = String::new();
        for change in changes {
            show(&mut text, change, &(self.validate_update)(&self.object(Some(change)), &old));
        }
        text
    }
}

fn lines(errors: &ErrorList) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn show(text: &mut String, (pointer, value): &Change, errors: &ErrorList) {
    writeln!(text, "{pointer} = {value}").expect("text can be written to");
    for line in lines(errors) {
        writeln!(text, "  {}", line.trim_end()).expect("text can be written to");
    }
}

fn put(value: &mut Value, pointer: &str, new: Value) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
    let parent = value.pointer_mut(parent).expect("the parent is there");
    match parent {
        Value::Object(members) if new.is_null() => {
            members.remove(last);
        }
        Value::Object(members) => {
            members.insert(last.replace("~1", "/"), new);
        }
        Value::Array(items) => items[last.parse::<usize>().expect("an index")] = new,
        _ => panic!("{pointer} leads into a scalar"),
    }
}
