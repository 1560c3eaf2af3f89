package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const clientTimeout = 10 * time.Second

// client sends one request after the other over one connection. It does without the
// goroutines of net/http's own client, because what the load takes of this machine's
// cores the nodes don't have.
type client struct {
	host string
	conn net.Conn // nil until the next request
	r    *bufio.Reader
	w    *bufio.Writer
}

func newClient(url string) *client { return &client{host: strings.TrimPrefix(url, "http://")} }

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close() // nothing more is wanted of it
		c.conn = nil
	}
}

// do sends one request, with value as its body if it is a PUT, and reads the whole
// answer. A key that does not exist is an answer, too.
func (c *client) do(method, target string, value []byte) error {
	status, err := c.exchange(method, target, value)
	if err != nil {
		c.close()
		return err
	}
	if status >= 400 && status != http.StatusNotFound {
		return fmt.Errorf("status %d", status)
	}
	return nil
}

func (c *client) exchange(method, target string, value []byte) (status int, err error) {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.host, clientTimeout)
		if err != nil {
			return 0, err
		}
		c.conn, c.r, c.w = conn, bufio.NewReader(conn), bufio.NewWriter(conn)
	}
	if err := c.conn.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return 0, err
	}
	// Flush has the error of all of them.
	_, _ = fmt.Fprintf(c.w, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target, c.host)
	if method == http.MethodPut {
		_, _ = fmt.Fprintf(c.w, "Content-Length: %d\r\n\r\n", len(value))
		_, _ = c.w.Write(value)
	} else {
		_, _ = c.w.WriteString("\r\n")
	}
	if err := c.w.Flush(); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if err := resp.Body.Close(); err != nil {
		return 0, err
	}
	if resp.Close {
		c.close()
	}
	return resp.StatusCode, nil
}
