package client_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// call is a request as a fake node saw it.
type call struct {
	method, path string
	query        map[string]string
	header       http.Header
	body         string
}

// node is a fake node: it answers its calls with the handlers of its script in turn,
// the last one for ever.
type node struct {
	*httptest.Server
	mu     sync.Mutex
	script []http.HandlerFunc
	calls  []call
}

func newNode(t testing.TB, script ...http.HandlerFunc) *node {
	t.Helper()
	n := &node{script: script}
	n.Server = httptest.NewServer(http.HandlerFunc(n.serve))
	t.Cleanup(n.Close)
	return n
}

func (n *node) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	query := map[string]string{}
	for k, v := range r.URL.Query() {
		query[k] = v[0]
	}
	n.mu.Lock()
	n.calls = append(n.calls, call{r.Method, r.URL.EscapedPath(), query, r.Header, string(body)})
	h := n.script[0]
	if len(n.script) > 1 {
		n.script = n.script[1:]
	}
	n.mu.Unlock()
	h(w, r)
}

// seen returns the calls so far.
func (n *node) seen() []call {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]call(nil), n.calls...)
}

// answerWith answers with a status, headers in pairs, and a body.
func answerWith(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// problem answers as a node does.
func problem(status int, members map[string]any, headers ...string) http.HandlerFunc {
	members["status"] = status
	body, err := json.Marshal(members)
	if err != nil {
		panic(err)
	}
	return answerWith(status, string(body), append(headers, "Content-Type", "application/problem+json")...)
}

func refusal(code kv.Code, status int) http.HandlerFunc {
	return problem(status, map[string]any{"code": code, "detail": "refused", "outcome": kv.OutcomeNotApplied})
}

// breakOff takes the request and then breaks the connection.
func breakOff(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// hang answers nothing until the client goes away.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// dead returns an endpoint that nothing listens on.
func dead(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.URL
}

func dial(t testing.TB, timeout time.Duration, endpoints ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Endpoints: endpoints, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newRawNode is a node of one handler that reads bodies itself.
func newRawNode(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
