package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
)

// The fields of ollama api/types.go, openai/openai.go, openai/responses.go and
// anthropic/anthropic.go, v0.20.0, that a gate looks at, with their types and tags.
type native struct {
	Model     string         `json:"model"`
	Name      string         `json:"name"`
	From      string         `json:"from,omitempty"`
	Stream    *bool          `json:"stream,omitempty"`
	KeepAlive *duration      `json:"keep_alive,omitempty"`
	Options   map[string]any `json:"options"`
}

type copying struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

type openAI struct {
	Model         string `json:"model"`
	Stream        bool   `json:"stream"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens *int `json:"max_tokens"`
}

type responses struct {
	Model           string `json:"model"`
	Stream          *bool  `json:"stream,omitempty"`
	MaxOutputTokens *int   `json:"max_output_tokens,omitempty"`
}

type messages struct {
	Model     string `json:"model"`
	MaxTokens int    `json:"max_tokens"`
	Stream    bool   `json:"stream,omitempty"`
	Tools     []struct {
		Type string `json:"type,omitempty"`
	} `json:"tools,omitempty"`
}

// duration is api.Duration.
type duration struct{ time.Duration }

func (d *duration) UnmarshalJSON(b []byte) (err error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	d.Duration = 5 * time.Minute
	switch t := v.(type) {
	case float64:
		if t < 0 {
			d.Duration = time.Duration(math.MaxInt64)
		} else {
			d.Duration = time.Duration(t * float64(time.Second))
		}
	case string:
		d.Duration, err = time.ParseDuration(t)
		if err != nil {
			return err
		}
		if d.Duration < 0 {
			d.Duration = time.Duration(math.MaxInt64)
		}
	default:
		return fmt.Errorf("Unsupported type: '%s'", reflect.TypeOf(v))
	}
	return nil
}

// read is what the handlers make of a body.
type read struct {
	// The body alone is JSON, once.
	Valid bool `json:"valid"`
	// The handler would answer 400, or Go says EOF.
	Refused     bool           `json:"refused"`
	Model       string         `json:"model"`
	Source      string         `json:"source"`
	Destination string         `json:"destination"`
	Stream      *bool          `json:"stream"`
	KeepAlive   *int64         `json:"keep_alive"`
	Options     map[string]any `json:"options"`
	Usage       bool           `json:"usage"`
	MaxTokens   *int           `json:"max_tokens"`
	// One of the tools is Anthropic's own search [anthropic/anthropic.go FromMessagesRequest].
	Searches bool `json:"searches"`
	// What cloudPassthroughMiddleware takes for the model [server/cloud_proxy.go].
	Cloud string `json:"cloud"`
}

// readBodies reads lines of a kind ("native", "named", "copy", "openai", "responses", "messages"), a
// tab and a body in base64, and answers each with a line of JSON. "form" has the Content-Type and the
// query between.
func readBodies() {
	gin.SetMode(gin.ReleaseMode)
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fields := bytes.Split(bytes.TrimSuffix(line, []byte("\n")), []byte("\t"))
		var decoded [][]byte
		for _, field := range fields[1:] {
			plain, err := base64.StdEncoding.DecodeString(string(field))
			if err != nil {
				log.Fatal(err)
			}
			decoded = append(decoded, plain)
		}
		var answer read
		if string(fields[0]) == "form" {
			answer = readForm(decoded[0], string(decoded[1]), string(decoded[2]))
		} else {
			answer = readBody(string(fields[0]), decoded[0])
		}
		text, err := json.Marshal(answer)
		if err != nil {
			log.Fatal(err)
		}
		out.Write(append(text, '\n'))
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return
			}
		}
	}
}

func bind(body []byte, into any) error {
	request, err := http.NewRequest("POST", "/", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	return (&gin.Context{Request: request}).ShouldBindJSON(into)
}

func readBody(kind string, body []byte) read {
	answer := read{Valid: json.Valid(body)}
	var raw map[string]json.RawMessage
	if json.Unmarshal(body, &raw) == nil {
		_ = json.Unmarshal(raw["model"], &answer.Cloud)
	}
	var err error
	switch kind {
	case "copy":
		var r copying
		err = bind(body, &r)
		answer.Source, answer.Destination = r.Source, r.Destination
	case "openai":
		var r openAI
		err = bind(body, &r)
		answer.Model, answer.Stream, answer.MaxTokens = r.Model, &r.Stream, r.MaxTokens
		answer.Usage = r.StreamOptions != nil && r.StreamOptions.IncludeUsage
	case "responses":
		var r responses
		err = bind(body, &r)
		answer.Model, answer.Stream, answer.MaxTokens = r.Model, r.Stream, r.MaxOutputTokens
	case "messages":
		var r messages
		err = bind(body, &r)
		answer.Model, answer.Stream, answer.MaxTokens = r.Model, &r.Stream, &r.MaxTokens
		for _, tool := range r.Tools {
			answer.Searches = answer.Searches || strings.HasPrefix(tool.Type, "web_search")
		}
	default:
		var r native
		err = bind(body, &r)
		answer.Model, answer.Stream, answer.Options = r.Model, r.Stream, r.Options
		if kind == "named" {
			answer.Model, answer.Source = cmp.Or(r.Model, r.Name), r.From
		}
		if r.KeepAlive != nil {
			nanoseconds := int64(r.KeepAlive.Duration)
			answer.KeepAlive = &nanoseconds
		}
	}
	if err != nil {
		return read{Valid: answer.Valid, Refused: true}
	}
	return answer
}

// readForm is the beginning of TranscriptionMiddleware [middleware/openai.go].
func readForm(body []byte, contentType, query string) read {
	request, err := http.NewRequest("POST", "/v1/audio/transcriptions?"+query, bytes.NewReader(body))
	if err != nil {
		return read{Refused: true}
	}
	request.Header.Set("Content-Type", contentType)
	err = request.ParseMultipartForm(25 << 20)
	if err != nil {
		return read{Refused: true}
	}
	answer := read{Model: request.FormValue("model")}
	if _, _, err := request.FormFile("file"); errors.Is(err, http.ErrMissingFile) {
		answer.Refused = answer.Model == ""
	}
	return answer
}
