//! Typed values into a [`Config`], each with its own check.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

use super::roles::{Pattern, Role};
use super::{Config, Cors, LogFormat, Origins, Problem, Typed, Value, WeakHashes, values};

/// Applies in order, so that the last one stands.
pub(super) fn all(config: &mut Config, typed: &[Typed], problems: &mut Vec<Problem>) {
    for value in typed {
        let applied = match value.key.split_once('.') {
            None => top(config, value),
            Some(("timeouts", name)) => timeout(config, name, value),
            Some(("backend", name)) => backend(config, name, value),
            Some(("roles", role)) => roles(config, role, value),
            Some(_) => value.origins().map(|origins| config.cors = Cors { origins }),
        };
        if let Err(says) = applied {
            let says = format!("{}: {says}", value.key);
            problems.push(Problem { place: value.place.clone(), says });
        }
    }
}

fn top(config: &mut Config, value: &Typed) -> Result<(), String> {
    match value.key {
        "listen" => config.listen = value.listen()?,
        "upstream" => config.backend.url = value.text()?.parse().map_err(|bad| format!("{bad}"))?,
        "htpasswd" => config.htpasswd = value.path()?,
        "api_keys" => config.api_keys = value.path()?,
        "authorized_keys" => config.authorized_keys = value.path()?,
        "path_keys" => config.path_keys = value.switch()?,
        "weak_hashes" => {
            let choices = [("warn", WeakHashes::Warn), ("refuse", WeakHashes::Refuse)];
            config.weak_hashes = value.one_of(&choices)?;
        }
        "credential_headers" => config.credential_headers = value.each(header)?,
        "failed_attempts_per_minute" => config.failed_attempts_per_minute = value.count()?,
        "default_role" => config.roles.set_default(value.text()?.parse()?),
        "extra_endpoints" => config.extra_endpoints = value.each(values::endpoint)?,
        "public_url" => config.public_url = value.filled(values::web_url)?,
        "help_url" => config.help_url = value.filled(values::web_url)?,
        "contact" => config.contact = value.filled(values::contact)?,
        "trusted_proxies" => config.trusted_proxies = value.each(network)?,
        "max_body" => config.max_body = value.size()?,
        "max_body_memory" => config.max_body_memory = value.size()?,
        "log_format" => {
            let choices = [("text", LogFormat::Text), ("json", LogFormat::Json)];
            config.log_format = value.one_of(&choices)?;
        }
        "drain_delay" => config.drain_delay = value.duration()?,
        "drain_timeout" => config.drain_timeout = value.duration()?,
        // The table has no other key without a dot.
        _ => {}
    }
    Ok(())
}

fn timeout(config: &mut Config, name: &str, value: &Typed) -> Result<(), String> {
    let duration = value.duration()?;
    if duration.is_zero() {
        return Err("nothing can be done in no time; write it as 10s".to_owned());
    }
    let timeouts = &mut config.timeouts;
    let place: &mut Duration = match name {
        "connect" => &mut timeouts.connect,
        "first_byte" => &mut timeouts.first_byte,
        "idle" => &mut timeouts.idle,
        "header" => &mut timeouts.header,
        "keep_alive" => &mut timeouts.keep_alive,
        _ => &mut timeouts.body_grace,
    };
    *place = duration;
    Ok(())
}

fn backend(config: &mut Config, name: &str, value: &Typed) -> Result<(), String> {
    let backend = &mut config.backend;
    match name {
        "name" => {
            let name = value.text()?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
                return Err("1 to 64 letters, digits, dots, hyphens and underscores".to_owned());
            }
            name.clone_into(&mut backend.name);
        }
        "url" => backend.url = value.text()?.parse().map_err(|bad| format!("{bad}"))?,
        "key_file" => backend.key_file = value.path()?,
        "preserve_host" => backend.preserve_host = value.switch()?,
        _ => value.one_of(&[("ollama", ())])?,
    }
    Ok(())
}

fn roles(config: &mut Config, role: &str, value: &Typed) -> Result<(), String> {
    let role: Role = role.parse()?;
    for name in value.list()? {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err("a name must not be empty or hold control characters".to_owned());
        }
        config.roles.add(Pattern::new(name), role)?;
    }
    Ok(())
}

fn header(name: &str) -> Result<HeaderName, String> {
    let wrong = || format!("{name:?} is not the name of a header that may carry a key");
    let header: HeaderName = name.parse().map_err(|_| wrong())?;
    let ours = ["authorization", "host", "content-length", "transfer-encoding", "connection"];
    if ours.contains(&header.as_str()) || header.as_str().contains('_') {
        Err(wrong())
    } else {
        Ok(header)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    text.parse()
        .ok()
        .or_else(address)
        .ok_or_else(|| format!("{text:?} is not a network; write it as 10.0.0.0/8 or 192.0.2.1"))
}

impl Typed {
    fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::Text(text) => Ok(text),
            Value::Switch(_) | Value::Number(_) | Value::List(_) => {
                Err("a text in quotes is wanted here".to_owned())
            }
        }
    }

    fn list(&self) -> Result<&[String], String> {
        match &self.value {
            Value::List(list) => Ok(list),
            Value::Text(one) => Ok(std::slice::from_ref(one)),
            Value::Switch(_) | Value::Number(_) => {
                Err("a list of texts is wanted here, as [\"…\"]".to_owned())
            }
        }
    }

    fn switch(&self) -> Result<bool, String> {
        match &self.value {
            Value::Switch(on) => Ok(*on),
            Value::Text(_) | Value::Number(_) | Value::List(_) => {
                Err("true or false is wanted here".to_owned())
            }
        }
    }

    fn count(&self) -> Result<u32, String> {
        match &self.value {
            Value::Number(number) => u32::try_from(*number).ok(),
            Value::Text(_) | Value::Switch(_) | Value::List(_) => None,
        }
        .ok_or_else(|| "a number from 0 is wanted here".to_owned())
    }

    fn size(&self) -> Result<u64, String> {
        let size = match &self.value {
            Value::Number(number) => u64::try_from(*number).map_err(|_| "a size is wanted here")?,
            Value::Text(text) => values::size(text)?,
            Value::Switch(_) | Value::List(_) => return Err("a size is wanted here".to_owned()),
        };
        if size == 0 { Err("0 bytes would refuse every body".to_owned()) } else { Ok(size) }
    }

    fn duration(&self) -> Result<Duration, String> {
        values::duration(self.text().map_err(|_| "a duration is wanted here, as \"10s\"")?)
    }

    fn each<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
        self.list()?.iter().map(|item| parse(item)).collect()
    }

    fn listen(&self) -> Result<Vec<std::net::SocketAddr>, String> {
        let addresses = self.each(values::listen)?;
        let twice = addresses.iter().enumerate().find(|(number, address)| {
            address.port() != 0 && addresses.iter().take(*number).any(|other| other == *address)
        });
        match twice {
            Some((_, address)) => Err(format!("{address} stands here twice")),
            None if addresses.is_empty() => Err("one address at least is needed".to_owned()),
            None => Ok(addresses),
        }
    }

    fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ");
        let choice = choices.iter().find(|(name, _)| *name == text);
        choice.map(|(_, value)| *value).ok_or_else(|| format!("{text:?} is not {}", names()))
    }

    /// An empty text is no value.
    fn filled<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
        let text = self.text()?;
        if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
    }

    fn path(&self) -> Result<Option<PathBuf>, String> {
        self.filled(|text| Ok(self.folder.join(text)))
    }

    fn origins(&self) -> Result<Origins, String> {
        match self.list()? {
            [any] if any == "*" => Ok(Origins::Any),
            list if list.iter().any(|origin| origin == "*") => {
                Err("\"*\" is any origin; leave out the others".to_owned())
            }
            _ => self.each(values::origin).map(Origins::Listed),
        }
    }
}
