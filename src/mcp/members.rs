//! What a JSON-RPC message has, found in one pass.

use crate::json::Value;

/// The members that a message may have.
#[derive(Default)]
pub struct Members<'a> {
    pub jsonrpc: Option<Value<'a>>,
    pub id: Option<Value<'a>>,
    pub method: Option<Value<'a>>,
    pub params: Option<Value<'a>>,
    pub result: Option<Value<'a>>,
    pub error: Option<Value<'a>>,
    /// It has others: `Method` or `paramſ` is somebody else's parser's idea (json-7).
    pub others: bool,
}

impl<'a> Members<'a> {
    /// Those of the outermost value of a message.
    pub fn of(root: Value<'a>) -> Self {
        let mut members = Self::default();
        for (name, value) in root.named() {
            let member = match &*name {
                b"jsonrpc" => &mut members.jsonrpc,
                b"id" => &mut members.id,
                b"method" => &mut members.method,
                b"params" => &mut members.params,
                b"result" => &mut members.result,
                b"error" => &mut members.error,
                _ => {
                    members.others = true;
                    continue;
                }
            };
            *member = Some(value);
        }
        members
    }
}
