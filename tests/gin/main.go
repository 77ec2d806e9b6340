// Says which of Ollama's routes a request reaches.
//
// Reads lines of METHOD, a tab and a request target, and answers each with a line: the pattern of
// the route that Ollama's router chooses, or "redirect", "none", or "badrequest" where Go does not
// take the request line at all; then a tab, and what stands for the pattern's parameter, as JSON. With the argument "routes" it prints its table instead.
//
// With the argument "bodies" it says what Ollama's handlers read in a body: see bodies.go.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/gin-gonic/gin"
)

// routes are those of ollama server/routes.go, GenerateRoutes, v0.20.0, in the same order.
var routes = []struct{ method, path string }{
	// General
	{"HEAD", "/"},
	{"GET", "/"},
	{"HEAD", "/api/version"},
	{"GET", "/api/version"},
	{"GET", "/api/status"},

	// Local model cache management
	{"POST", "/api/pull"},
	{"POST", "/api/push"},
	{"HEAD", "/api/tags"},
	{"GET", "/api/tags"},
	{"POST", "/api/show"},
	{"DELETE", "/api/delete"},
	{"POST", "/api/me"},
	{"POST", "/api/signout"},
	{"DELETE", "/api/user/keys/:encodedKey"},

	// Create
	{"POST", "/api/create"},
	{"POST", "/api/blobs/:digest"},
	{"HEAD", "/api/blobs/:digest"},
	{"POST", "/api/copy"},
	{"POST", "/api/experimental/web_search"},
	{"POST", "/api/experimental/web_fetch"},

	// Inference
	{"GET", "/api/ps"},
	{"POST", "/api/generate"},
	{"POST", "/api/chat"},
	{"POST", "/api/embed"},
	{"POST", "/api/embeddings"},

	// Inference, as OpenAI and Anthropic have it
	{"POST", "/v1/chat/completions"},
	{"POST", "/v1/completions"},
	{"POST", "/v1/embeddings"},
	{"GET", "/v1/models"},
	{"GET", "/v1/models/:model"},
	{"POST", "/v1/responses"},
	{"POST", "/v1/images/generations"},
	{"POST", "/v1/images/edits"},
	{"POST", "/v1/audio/transcriptions"},
	{"POST", "/v1/messages"},

	// Since v0.33
	{"GET", "/api/experimental/model-recommendations"},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "routes" {
		for _, route := range routes {
			fmt.Printf("%s\t%s\n", route.method, route.path)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "bodies" {
		readBodies()
		return
	}
	handler := router()
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		method, target, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("\t"))
		if !found {
			log.Fatalf("no tab in %q", line)
		}
		route, parameter := resolve(handler, method, target)
		text, err := json.Marshal(parameter)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(out, "%s\t%s\n", route, text)
		// The asker waits for the answer, unless it has sent more already.
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return
			}
		}
	}
}

// router is configured as Ollama configures its own, behind the same mux (Serve).
func router() http.Handler {
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.HandleMethodNotAllowed = true
	for _, route := range routes {
		r.Handle(route.method, route.path, func(c *gin.Context) {
			c.Writer.Header().Set("Route", c.FullPath())
			for _, parameter := range c.Params {
				c.Writer.Header().Set("Parameter", parameter.Value)
			}
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/", r)
	return mux
}

// resolve has the request parsed from its bytes, so that Go's reading of the target counts too.
func resolve(handler http.Handler, method, target []byte) (route, parameter string) {
	var raw bytes.Buffer
	fmt.Fprintf(&raw, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:11434\r\n\r\n", method, target)
	request, err := http.ReadRequest(bufio.NewReader(&raw))
	if err != nil {
		return "badrequest", ""
	}
	answer := &answer{header: http.Header{}}
	handler.ServeHTTP(answer, request)
	switch route := answer.header.Get("Route"); {
	case route != "":
		return route, answer.header.Get("Parameter")
	case answer.status >= 300 && answer.status < 400:
		return "redirect", ""
	default:
		return "none", ""
	}
}

type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header            { return a.header }
func (a *answer) Write(body []byte) (int, error) { return len(body), nil }
func (a *answer) WriteHeader(status int)         { a.status = status }
