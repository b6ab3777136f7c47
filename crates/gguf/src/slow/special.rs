//! Special and added tokens of a tokenizer without a `tokenizer.json`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{CONFIG, Class, object};
use crate::GgufError;

/// The special and added tokens, wherever they are named.
pub(super) struct Special {
    /// With what other files name.
    pub(super) config: Map<String, Value>,
    ids: HashMap<String, usize>,
    /// By number.
    added: BTreeMap<usize, Value>,
}

impl Special {
    pub(super) fn new(
        directory: &Path,
        class: Class,
        mut config: Map<String, Value>,
        ids: HashMap<String, usize>,
    ) -> Result<Self, GgufError> {
        for (key, value) in object(&directory.join("special_tokens_map.json"))? {
            config.entry(key).or_insert(value);
        }
        for (key, token) in class.defaults() {
            if ids.contains_key(*token) && !config.contains_key(*key) {
                config.insert((*key).to_owned(), json!(token));
            }
        }
        let mut special = Self {
            config,
            ids,
            added: BTreeMap::new(),
        };
        special.add_declared(directory)?;
        special.add_named();
        Ok(special)
    }

    /// Those with numbers: `added_tokens_decoder`, else `added_tokens.json`.
    fn add_declared(&mut self, directory: &Path) -> Result<(), GgufError> {
        let path = directory.join(CONFIG);
        if let Some(declared) = self
            .config
            .get("added_tokens_decoder")
            .and_then(Value::as_object)
        {
            let mut all = Vec::new();
            for (id, token) in declared {
                let parsed = id.parse::<u32>().ok();
                let content = token.get("content").and_then(Value::as_str);
                let (Some(id), Some(content)) = (parsed, content) else {
                    let reason = format!(
                        "`added_tokens_decoder` has {id:?}: {token}, which is no numbered token"
                    );
                    return Err(GgufError::tokenizer(&path, reason));
                };
                all.push((id as usize, content.to_owned(), token.clone()));
            }
            for (id, content, token) in all {
                self.add(id, &content, &token);
            }
            return Ok(());
        }
        let path = directory.join("added_tokens.json");
        let named = self.named();
        for (content, id) in object(&path)? {
            let Some(id) = id.as_u64().filter(|_| is_id(&id)) else {
                let reason =
                    format!("its token {content:?} has the number {id}, which is none of a token");
                return Err(GgufError::tokenizer(&path, reason));
            };
            let special = named.iter().any(|(token, _)| *token == content);
            self.add(
                id as usize,
                &content,
                &json!({"special": special, "normalized": !special}),
            );
        }
        Ok(())
    }

    /// The tokens that keys such as `eos_token` name, with what the file says of
    /// them.
    fn named(&self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        let mut take = |value: &Value| {
            let content = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(content) = content.filter(|content| !content.is_empty()) {
                all.push((content.to_owned(), value.clone()));
            }
        };
        for key in [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ] {
            self.config.get(key).into_iter().for_each(&mut take);
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let list = self.config.get(key).and_then(Value::as_array);
            list.into_iter().flatten().for_each(&mut take);
        }
        all
    }

    /// Special tokens have the number of their spelling, or the next one.
    fn add_named(&mut self) {
        for (content, value) in self.named() {
            if self
                .added
                .values()
                .any(|token| token["content"] == content.as_str())
            {
                continue;
            }
            let next = || {
                let most = self.ids.values().chain(self.added.keys()).max();
                most.map_or(0, |most| most + 1)
            };
            let id = self.ids.get(&content).copied().unwrap_or_else(next);
            let mut token = value.as_object().cloned().unwrap_or_default();
            token.insert("special".to_owned(), json!(true));
            token.entry("normalized").or_insert(json!(false));
            self.add(id, &content, &Value::Object(token));
        }
    }

    /// A token that the vocabulary's own file marks.
    pub(super) fn add_own(&mut self, id: usize, content: &str, control: bool) {
        if !self.added.contains_key(&id) {
            self.add(
                id,
                content,
                &json!({"special": control, "normalized": false}),
            );
        }
    }

    fn add(&mut self, id: usize, content: &str, token: &Value) {
        let flag = |key: &str| token.get(key).and_then(Value::as_bool).unwrap_or(false);
        let token = json!({
            "id": id,
            "content": content,
            "single_word": flag("single_word"),
            "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"),
            "normalized": flag("normalized"),
            "special": flag("special"),
        });
        self.ids.insert(content.to_owned(), id);
        self.added.insert(id, token);
    }

    pub(super) fn added(&self) -> Vec<Value> {
        self.added.values().cloned().collect()
    }

    /// What every document gets before and behind it, as `add_bos_token` and
    /// `add_eos_token` say.
    pub(super) fn template(&mut self, bos_by_default: bool) -> Value {
        let flag = |key: &str, default: bool| {
            self.config
                .get(key)
                .and_then(Value::as_bool)
                .unwrap_or(default)
        };
        let (bos, eos) = (
            flag("add_bos_token", bos_by_default),
            flag("add_eos_token", false),
        );
        let token = |key: &str| {
            let value = self.config.get(key)?;
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((token.to_owned(), *self.ids.get(token)?))
        };
        let before = bos.then(|| token("bos_token")).flatten();
        let after = eos.then(|| token("eos_token")).flatten();
        if before.is_none() && after.is_none() {
            return Value::Null;
        }
        let special = |(token, _): &(String, usize), kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let sequence = |name: &str, kind: u8| {
            let before = before.iter().map(|token| special(token, kind));
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let after = after.iter().map(|token| special(token, kind));
            before.chain([text]).chain(after).collect::<Vec<_>>()
        };
        let tokens: Map<String, Value> = before
            .iter()
            .chain(&after)
            .map(|(token, id)| {
                (
                    token.clone(),
                    json!({"id": token, "ids": [id], "tokens": [token]}),
                )
            })
            .collect();
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        })
    }
}

pub(super) fn is_id(value: &Value) -> bool {
    value.as_u64().is_some_and(|id| id < u64::from(u32::MAX))
}
