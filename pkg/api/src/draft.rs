//! An object on its way into the store, seen as JSON or as a typed value by whoever needs which.

use std::any::Any;

use serde_json::Value;

use crate::kind::{DecodeError, Kind};

/// Holds one object in whichever form was written last and converts when the other is asked for.
/// A write normally converts twice: to typed for defaulting and validation, and back.
pub struct Draft {
    form: Form,
}

enum Form {
    Value(Value),
    Typed { object: Box<dyn Any + Send + Sync>, to_value: fn(&(dyn Any + Send + Sync)) -> Value },
}

impl Draft {
    pub fn new(value: Value) -> Self {
        Self { form: Form::Value(value) }
    }

    /// The object as `K`, to change in place.
    pub fn typed<K: Kind>(&mut self) -> Result<&mut K, DecodeError> {
        let is_typed = matches!(&self.form, Form::Typed { object, .. } if object.is::<K>());
        if !is_typed {
            let value = std::mem::take(self.value());
            let object = Box::new(K::from_value(value)?);
            self.form = Form::Typed { object, to_value: to_value::<K> };
        }
        match &mut self.form {
            Form::Typed { object, .. } => Ok(object.downcast_mut::<K>().expect("the form was just made a K")),
            Form::Value(_) => unreachable!("the form was just made typed"),
        }
    }

    /// The object as JSON, to change in place.
    pub fn value(&mut self) -> &mut Value {
        if let Form::Typed { object, to_value } = &self.form {
            self.form = Form::Value(to_value(object.as_ref()));
        }
        match &mut self.form {
            Form::Value(value) => value,
            Form::Typed { .. } => unreachable!("the form was just made JSON"),
        }
    }

    pub fn into_value(mut self) -> Value {
        std::mem::take(self.value())
    }
}

fn to_value<K: Kind>(object: &(dyn Any + Send + Sync)) -> Value {
    object.downcast_ref::<K>().expect("made together with an object of this type").to_value()
}
