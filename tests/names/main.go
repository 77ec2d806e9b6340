// Says what Ollama takes a model's name for.
//
// Reads lines of JSON strings, and answers each with a line of JSON: see told.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"strings"

	"github.com/ollama/ollama/internal/modelref"
	"github.com/ollama/ollama/types/model"
)

// told is what two kinds of handlers make of a name, as Ollama shows it and in lower case; empty
// where they refuse it.
type told struct {
	// Of those that look for the source first (parseAndValidateModelRef in server/model_resolver.go).
	Ref   string `json:"ref"`
	Cloud bool   `json:"cloud"`
	// Of those that do not, such as copy and push.
	Raw string `json:"raw"`
	// The host is written and empty, and the usual one stands for it.
	EmptyHost bool `json:"empty_host"`
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		var name string
		if err == nil {
			err = json.Unmarshal(line, &name)
		}
		if err != nil {
			log.Fatal(err)
		}
		answer, err := json.Marshal(tell(name))
		if err != nil {
			log.Fatal(err)
		}
		out.Write(append(answer, '\n'))
		// The asker waits for the answer, unless it has sent more already.
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return
			}
		}
	}
}

func tell(text string) (t told) {
	if name := model.ParseName(text); name.IsValid() {
		t.Raw = strings.ToLower(name.DisplayShortest())
	}
	ref, err := modelref.ParseRef(text)
	if err != nil {
		return t
	}
	if name := model.ParseName(ref.Base); name.IsValid() {
		t.Ref = strings.ToLower(name.DisplayShortest())
		t.Cloud = ref.Source == modelref.ModelSourceCloud
		bare := model.ParseNameBare(ref.Base)
		t.EmptyHost = bare.Host == "" && strings.Count(ref.Base, "/") > 1
	}
	return t
}
