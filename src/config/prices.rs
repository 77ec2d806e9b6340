//! `[prices]`: what the tokens of a model cost, and the time of the backend that works on them.

use std::time::Duration;

use super::problems::{Found, shown, shown_key};
use super::written::{Field, Form, Written};
use super::{ModelName, ModelPattern};

/// What models cost, by patterns of their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices(Vec<(ModelPattern, Price)>);

/// In a currency that everybody knows and nobody writes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    /// For a million tokens of the prompt.
    pub prompt: f64,
    /// For a million tokens of the answer.
    pub completion: f64,
    /// For a million tokens of the prompt that were worked out before; like others without it.
    pub cached: Option<f64>,
    /// For an hour in which a backend works on it.
    pub backend_hour: f64,
}

/// What was used of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub prompt: u64,
    /// Of the prompt.
    pub cached: u64,
    pub completion: u64,
    pub backend_time: Duration,
}

const WANTED: &str = "write { prompt = 0.10, completion = 0.40 }";
/// More than anybody pays; past it sums would lose their cents.
const MOST: f64 = 1e9;
const MILLION: f64 = 1e6;
const HOUR: f64 = 3600.0;

impl Prices {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of an exact name before a pattern, and of several patterns by the longest.
    #[must_use]
    pub fn of(&self, model: &str) -> Option<&Price> {
        let name = ModelName::parse(model).ok();
        let matching = self.0.iter().filter(|(pattern, _)| match &name {
            Some(name) => pattern.matches(name),
            // What is no name is one of all models, and no other.
            None => pattern.is_everything(),
        });
        let closest = matching.max_by_key(|(pattern, _)| (pattern.is_exact(), pattern.letters()));
        closest.map(|(_, price)| price)
    }

    pub fn patterns(&self) -> impl Iterator<Item = &ModelPattern> {
        self.0.iter().map(|(pattern, _)| pattern)
    }
}

impl Price {
    #[must_use]
    pub fn cost(&self, spent: &Spent) -> f64 {
        let cached = spent.cached.min(spent.prompt);
        let tokens = of(spent.prompt - cached) * self.prompt
            + of(cached) * self.cached.unwrap_or(self.prompt)
            + of(spent.completion) * self.completion;
        tokens / MILLION + spent.backend_time.as_secs_f64() / HOUR * self.backend_hour
    }

    fn read(fields: &[Field]) -> Result<Self, Found> {
        let mut price = Self::default();
        let mut found = Found::default();
        let names = |name: &str| fields.iter().any(|field| field.name == name);
        for Field { name, form, place } in fields {
            let read = match name.as_str() {
                "prompt" => amount(form).map(|it| price.prompt = it),
                "completion" => amount(form).map(|it| price.completion = it),
                "cached" => amount(form).map(|it| price.cached = Some(it)),
                "backend_hour" => amount(form).map(|it| price.backend_hour = it),
                _ => Err("is none of prompt, completion, cached and backend_hour".to_owned()),
            };
            if let Err(says) = read {
                found.add(place.clone(), format!("{} {says}", shown_key(name)));
            } else if name == "cached" && !names("prompt") {
                found.add(place.clone(), "cached is for a part of the prompt; write prompt too");
            }
        }
        if found.is_empty() { Ok(price) } else { Err(found) }
    }
}

impl Written {
    /// The prices of the models that one pattern is about.
    pub(super) fn prices(&self, prices: &mut Prices) -> Result<(), Found> {
        let Form::Table(entries) = &self.form else { return Err(self.misfit()) };
        for Field { name, form, place } in entries {
            let one = Self { form: form.clone(), place: place.clone(), ..self.clone() };
            let pattern: ModelPattern = name.parse().map_err(|error| {
                one.wrong(format!("{} is no pattern of models: {error}", shown(name)))
            })?;
            let Form::Table(fields) = form else { return Err(one.misfit()) };
            if fields.is_empty() {
                return Err(one.wrong(format!("{} has no price; {WANTED}", shown(name))));
            }
            if prices.patterns().any(|known| *known == pattern) {
                return Err(one.wrong(format!("{} has its prices already", shown(name))));
            }
            prices.0.push((pattern, Price::read(fields)?));
        }
        Ok(())
    }
}

fn amount(form: &Form) -> Result<f64, String> {
    let number = if let Form::Number(number) = form {
        number.to_string().parse().ok()
    } else if let Form::Fraction(text) = form {
        text.replace('_', "").parse::<f64>().ok()
    } else {
        return Err(format!("is a number without quotes, found {}; {WANTED}", form.name()));
    };
    // `nan` is in no range.
    number
        .filter(|number| (0.0..=MOST).contains(number))
        .ok_or_else(|| format!("is a number from 0 to {MOST:.0}; {WANTED}"))
}

/// Beyond 2^53 a token more or less costs nothing.
#[expect(clippy::cast_precision_loss, reason = "money is rounded to less than that")]
fn of(tokens: u64) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(rows: &[(&str, f64)]) -> Prices {
        let row = |(pattern, prompt): &(&str, f64)| {
            (pattern.parse().unwrap(), Price { prompt: *prompt, ..Price::default() })
        };
        Prices(rows.iter().map(row).collect())
    }

    #[test]
    fn the_closest_pattern_counts_in_whatever_order_they_stand() {
        let mut rows = [
            ("*", 1.0),
            ("gemma3*", 2.0),
            ("gemma3:12b*", 3.0),
            ("gemma3", 4.0),
            ("registry.ollama.ai/library/*", 5.0),
        ];
        for _ in 0..rows.len() {
            rows.rotate_left(1);
            let prices = prices(&rows);
            for (model, price) in [
                ("gemma3:latest", 4.0),
                ("Gemma3", 4.0),
                ("gemma3:12b", 5.0),
                ("hf.co/acme/x:q4", 1.0),
                ("no name at all", 1.0),
            ] {
                assert_eq!(prices.of(model).map(|it| it.prompt), Some(price), "{model}");
            }
        }
        assert_eq!(prices(&[("gemma3*", 1.0)]).of("qwen3:8b"), None);
        assert_eq!(prices(&[("gemma3*", 1.0)]).of("gemma3 and more"), None);
    }

    #[test]
    fn cached_tokens_are_a_part_of_the_prompt_and_time_has_a_price_of_its_own() {
        let spent = Spent {
            prompt: 3_000_000,
            cached: 1_000_000,
            completion: 500_000,
            backend_time: Duration::from_secs(5400),
        };
        let price = Price { prompt: 0.1, completion: 0.4, cached: Some(0.05), backend_hour: 0.3 };
        assert!((price.cost(&spent) - (0.2 + 0.05 + 0.2 + 0.45)).abs() < 1e-9);
        let plain = Price { cached: None, backend_hour: 0.0, ..price };
        assert!((plain.cost(&spent) - 0.5).abs() < 1e-9);
        // A backend that says that more was cached than sent.
        let odd = Spent { prompt: 1, cached: u64::MAX, ..Spent::default() };
        assert!((price.cost(&odd) - 0.05e-6).abs() < 1e-15);
    }
}
