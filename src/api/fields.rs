//! The fields of request bodies that the gate looks at, and which endpoint takes which.
//!
//! Source: ollama api/types.go, openai/openai.go, openai/responses.go, anthropic/anthropic.go.

use super::Asked;

/// A top-level field of a JSON body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Model,
    /// The old name of `model`.
    Name,
    From,
    /// Where a stub's model runs.
    RemoteHost,
    /// Layers that were uploaded, by their digests.
    Files,
    Adapters,
    DraftFiles,
    Source,
    Destination,
    Stream,
    StreamOptions,
    KeepAlive,
    Options,
    /// Whether the runner may forget the beginning of a conversation that is too long for it.
    Shift,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    /// How many answers.
    N,
    Images,
    Tools,
    /// The older form of `tools`.
    Functions,
    /// llama.cpp's own, which goes before `max_tokens` there [llama.cpp tools/server, `n_predict`].
    NPredict,
    /// llama.cpp's own, which goes before `n` there [llama.cpp tools/server, `n_cmpl`].
    NCmpl,
    Messages,
    Prompt,
    /// The conversation, of `/v1/responses`.
    Input,
    /// How urgent the caller says it is.
    ServiceTier,
}

/// What the value of a field has to be; `null` may always stand there, and is as if nothing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Text,
    Flag,
    Number,
    /// A number, or a text such as `5m`.
    Duration,
    Object,
    List,
    /// Text, or a list of items that may hold images.
    Conversation,
}

impl Field {
    pub const COUNT: usize = 27;

    pub const ALL: [Self; Self::COUNT] = [
        Self::Model,
        Self::Name,
        Self::From,
        Self::RemoteHost,
        Self::Files,
        Self::Adapters,
        Self::DraftFiles,
        Self::Source,
        Self::Destination,
        Self::Stream,
        Self::StreamOptions,
        Self::KeepAlive,
        Self::Options,
        Self::Shift,
        Self::MaxTokens,
        Self::MaxCompletionTokens,
        Self::MaxOutputTokens,
        Self::N,
        Self::Images,
        Self::Tools,
        Self::Functions,
        Self::NPredict,
        Self::NCmpl,
        Self::Messages,
        Self::Prompt,
        Self::Input,
        Self::ServiceTier,
    ];

    /// As it is written in a body.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Name => "name",
            Self::From => "from",
            Self::RemoteHost => "remote_host",
            Self::Files => "files",
            Self::Adapters => "adapters",
            Self::DraftFiles => "draft_files",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Stream => "stream",
            Self::StreamOptions => "stream_options",
            Self::KeepAlive => "keep_alive",
            Self::Options => "options",
            Self::Shift => "shift",
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
            Self::MaxOutputTokens => "max_output_tokens",
            Self::N => "n",
            Self::Images => "images",
            Self::Tools => "tools",
            Self::Functions => "functions",
            Self::NPredict => "n_predict",
            Self::NCmpl => "n_cmpl",
            Self::Messages => "messages",
            Self::Prompt => "prompt",
            Self::Input => "input",
            Self::ServiceTier => "service_tier",
        }
    }

    #[must_use]
    pub fn shape(self) -> Shape {
        match self {
            Self::Model
            | Self::Name
            | Self::From
            | Self::RemoteHost
            | Self::Source
            | Self::Destination
            | Self::ServiceTier => Shape::Text,
            Self::Stream | Self::Shift => Shape::Flag,
            Self::StreamOptions
            | Self::Options
            | Self::Files
            | Self::Adapters
            | Self::DraftFiles => Shape::Object,
            Self::KeepAlive => Shape::Duration,
            Self::MaxTokens
            | Self::MaxCompletionTokens
            | Self::MaxOutputTokens
            | Self::N
            | Self::NPredict
            | Self::NCmpl => Shape::Number,
            Self::Images | Self::Tools | Self::Functions => Shape::List,
            Self::Messages | Self::Prompt | Self::Input => Shape::Conversation,
        }
    }
}

impl Asked {
    /// The fields that this endpoint takes, of those that the gate looks at.
    #[must_use]
    pub fn fields(&self) -> &'static [Field] {
        use Field::{
            Adapters, Destination, DraftFiles, Files, From, Functions, Images, Input, KeepAlive,
            MaxCompletionTokens, MaxOutputTokens, MaxTokens, Messages, Model, N, NCmpl, NPredict,
            Name, Options, Prompt, RemoteHost, ServiceTier, Shift, Source, Stream, StreamOptions,
            Tools,
        };
        match self.operation() {
            "chat" => &[Model, Messages, Stream, Options, Shift, KeepAlive, Tools],
            "generate" => &[Model, Prompt, Stream, Options, Shift, KeepAlive, Images],
            "embed" | "embeddings" => &[Model, Options, KeepAlive],
            "show" => &[Model, Name, Options],
            "pull" | "push" => &[Model, Name, Stream],
            "create" => {
                &[Model, Name, From, RemoteHost, Files, Adapters, DraftFiles, Stream, Messages]
            }
            "delete" => &[Model, Name],
            "copy" => &[Source, Destination],
            "chat_completions" => &[
                Model,
                Messages,
                Stream,
                StreamOptions,
                MaxTokens,
                MaxCompletionTokens,
                N,
                Tools,
                ServiceTier,
                Functions,
                NPredict,
                NCmpl,
            ],
            "completions" => {
                &[Model, Prompt, Stream, StreamOptions, MaxTokens, N, ServiceTier, NPredict, NCmpl]
            }
            "v1_embeddings" => &[Model],
            "responses" => &[Model, Input, Stream, MaxOutputTokens, Tools, ServiceTier],
            "messages" => &[Model, Messages, Stream, MaxTokens, Tools],
            "unknown" => &[Model],
            _ => &[],
        }
    }

    #[must_use]
    pub fn takes(&self, field: Field) -> bool {
        self.fields().contains(&field)
    }

    /// Ollama decodes zstd there, for Codex, and nowhere else [server/cloud_proxy.go].
    #[must_use]
    pub fn takes_zstd(&self) -> bool {
        matches!(
            self.operation(),
            "chat_completions" | "completions" | "v1_embeddings" | "responses" | "messages"
        )
    }
}

/// The options that Ollama knows, today's and yesterday's [api/types.go Options, Runner].
pub const OPTIONS: [&str; 32] = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_last_n",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
    "tfs_z",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "penalize_newline",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "num_gqa",
];

/// The options for which, beside `shift`, Ollama loads a model anew where they differ from those that it
/// runs with
/// [server/sched.go needsReload; api/types.go Runner].
pub const RUNNER_OPTIONS: [&str; 7] =
    ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];
