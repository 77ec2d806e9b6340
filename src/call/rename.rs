//! Puts a model's own name in the place of another that it was asked for by.

use bytes::Bytes;

use super::reading::Reading;
use super::rewrite::Edit;
use super::{BodyBounds, Call, READ_AT_ONCE};
use crate::api::{Field, ModelIn};
use crate::reject::Reject;

impl Call<'_> {
    /// From here on the request names this model, wherever it named one; nothing else of it changes.
    ///
    /// # Errors
    /// 503 where there is no memory for a second body.
    pub async fn rename(&mut self, model: &str, bounds: &BodyBounds) -> Result<(), Reject> {
        self.alias = self.model().map(|it| it.into_owned().into());
        if self.asked.model_in() == ModelIn::Path {
            self.asked.rename(model);
            return Ok(());
        }
        let edits = self.reading.renaming(model);
        if edits.is_empty() {
            return Ok(());
        }
        self.edit(&edits, bounds)?;
        // What was read stands elsewhere now.
        let body = self.body.whole().cloned().unwrap_or_default();
        self.reading = self.read_anew(body).await?;
        Ok(())
    }

    async fn read_anew(&self, body: Bytes) -> Result<Reading, Reject> {
        if body.len() <= READ_AT_ONCE || self.asked.model_in() == ModelIn::Form {
            return Reading::of(&body, &self.asked, self.parts);
        }
        let asked = self.asked.clone();
        let aside = tokio::task::spawn_blocking(move || Reading::of_json(&body, &asked));
        // It does not fail but by a panic.
        aside.await.unwrap_or(Err(Reject::Internal))
    }
}

impl Reading {
    fn renaming(&self, model: &str) -> Vec<Edit> {
        if let Some(value) = self.form_model() {
            return vec![Edit::Replace { value, with: model.to_owned() }];
        }
        let with = serde_json::Value::from(model).to_string();
        let is_named = |field: &Field| {
            let member = self.field(*field);
            member.and_then(|it| self.text(it)).is_some_and(|text| !text.is_empty())
        };
        let named = [Field::Model, Field::Name].into_iter().filter(is_named);
        let members = named.filter_map(|field| self.field(field));
        members.map(|it| Edit::Replace { value: it.value, with: with.clone() }).collect()
    }
}
