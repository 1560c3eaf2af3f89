package httpapi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// TestRefusalArrives: a client that sends its whole body before it reads anything learns
// why it was refused, over HTTP/1.1 and HTTP/2.
func TestRefusalArrives(t *testing.T) {
	f := newFixture(t)
	f.store.settings.MaxValueBytes, f.store.settings.MaxRequestBytes = 8<<20, 32<<20
	addr := f.listen(t)
	big := bytes.Repeat([]byte("v"), 8<<20+1)
	for _, c := range []struct {
		target string
		body   []byte
		status int
	}{
		{"/v1/kv/a", big, http.StatusRequestEntityTooLarge},
		{"/v1/kv/a?foo=1", big[:100000], http.StatusBadRequest},
		{"/v1/kv/a?foo=1", big, http.StatusBadRequest},
	} {
		conn := dial(t, addr)
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", c.target, len(c.body))
		// In pieces, with the answer read only when all is sent.
		if _, err := io.Copy(conn, io.MultiReader(bytes.NewReader([]byte(head)), bytes.NewReader(c.body))); err != nil {
			t.Errorf("%s, %d bytes: the client could not send: %v", c.target, len(c.body), err)
			continue
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != c.status {
			t.Errorf("%s, %d bytes: %v: %v", c.target, len(c.body), resp, err)
		}

		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		tr := &http.Transport{Protocols: &protocols}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+addr+c.target, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err = tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s, %d bytes over HTTP/2: %v", c.target, len(c.body), err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !bytes.Contains(b, []byte(`"outcome":"not-applied"`)) {
			t.Errorf("%s, %d bytes over HTTP/2: %d %s: %v", c.target, len(c.body), resp.StatusCode, b, err)
		}
		tr.CloseIdleConnections()
	}
}

// TestUnmodifiedSince: a condition that can't be looked at is not passed over.
func TestUnmodifiedSince(t *testing.T) {
	f := newFixture(t)
	for _, req := range []string{"PUT", "DELETE", "POST"} {
		w := f.do(t, req, "/v1/kv/a", "", "If-Unmodified-Since: Thu, 26 Nov 2020 12:30:28 GMT")
		wantProblem(t, w, 400, kv.CodeInvalidArgument)
	}
}
