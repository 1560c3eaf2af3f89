package client

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultEndpoint is where a node listens that was told nothing else.
const DefaultEndpoint = "http://127.0.0.1:8080"

// DefaultTimeout bounds a call whose context has no deadline.
const DefaultTimeout = 10 * time.Second

// Config says how to reach a cluster. The zero value reaches a node on this machine.
type Config struct {
	// Endpoints are URLs of nodes, such as http://10.0.0.1:8080; a missing scheme is
	// http. Default: DefaultEndpoint.
	Endpoints []string
	// Timeout bounds a call, retries included, whose context has no deadline.
	// Default: DefaultTimeout.
	Timeout time.Duration
	// HTTPClient sends the requests; its Timeout should be zero. Default: one of the
	// Client's own, whose idle connections Close closes.
	HTTPClient *http.Client
	// HTTP2 speaks HTTP/2 only, without TLS by prior knowledge: many calls share one
	// connection to each node. It has no effect on an HTTPClient that was given.
	HTTP2 bool
}

// Client talks to one cluster. It is safe for concurrent use.
type Client struct {
	endpoints []*url.URL
	timeout   time.Duration
	http      *http.Client
	own       bool

	mu sync.Mutex
	// good is the index of the endpoint that a write was answered by last.
	good int
	// turn counts reads, so that they go round the endpoints.
	turn int
	// failed is when each endpoint failed last; zero once it answers.
	failed []time.Time
	// nodes has the id of the node behind each endpoint, "" where not known.
	nodes []string
	// leader is the id of the last leader heard of.
	leader string
}

// New makes a Client. It sends nothing.
func New(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = []string{DefaultEndpoint}
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	c := &Client{timeout: cfg.Timeout, http: cfg.HTTPClient, nodes: make([]string, len(cfg.Endpoints)), failed: make([]time.Time, len(cfg.Endpoints))}
	for _, text := range cfg.Endpoints {
		u, err := parseEndpoint(text)
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: %w", text, err)
		}
		c.endpoints = append(c.endpoints, u)
	}
	if c.http == nil {
		c.own = true
		c.http = &http.Client{
			Transport:     newTransport(cfg.HTTP2),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c, nil
}

func newTransport(http2 bool) *http.Transport {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		// A bulk load that is refused keeps its body, so that it can go elsewhere.
		ExpectContinueTimeout: time.Second,
		// Values are stored as they are; asking for compression would only
		// change their ETag.
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
	}
	if http2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

// Close closes the idle connections of a Client's own HTTP client. Calls in flight
// go on.
func (c *Client) Close() {
	if c.own {
		c.http.CloseIdleConnections()
	}
}

// Endpoints returns the endpoints as they were understood.
func (c *Client) Endpoints() []string {
	list := make([]string, len(c.endpoints))
	for i, u := range c.endpoints {
		list[i] = u.String()
	}
	return list
}

func parseEndpoint(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("want a URL such as http://10.0.0.1:8080")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("want a URL such as http://10.0.0.1:8080")
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), ""
	return u, nil
}

// sidelined is for how long an endpoint that failed is asked after those that did not.
const sidelined = 5 * time.Second

// order returns the indices of the endpoints in the order to try them. What the leader
// does goes to it if it is known, else to the endpoint that answered last; reads go to
// each endpoint in turn. Endpoints that failed a moment ago come last.
func (c *Client) order(forLeader bool) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.good
	if !forLeader {
		first = c.turn
		c.turn = (c.turn + 1) % len(c.endpoints)
	} else if c.leader != "" {
		if i := slices.Index(c.nodes, c.leader); i >= 0 {
			first = i
		}
	}
	list := make([]int, 0, len(c.endpoints))
	var bad []int
	for i := range c.endpoints {
		i = (first + i) % len(c.endpoints)
		if at := c.failed[i]; at.IsZero() || time.Since(at) > sidelined {
			list = append(list, i)
		} else {
			bad = append(bad, i)
		}
	}
	return append(list, bad...)
}

// learn remembers what the headers of an answer of endpoint i tell.
func (c *Client) learn(i int, h http.Header, forLeader bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[i] = time.Time{}
	if forLeader {
		c.good = i
	}
	if id := h.Get("Sett-Node"); id != "" {
		c.nodes[i] = id
	}
	if id := h.Get("Sett-Leader"); id != "" {
		c.leader = id
	}
}

// forget makes the next call start elsewhere than at endpoint i.
func (c *Client) forget(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[i] = time.Now()
	if c.good == i {
		c.good = (i + 1) % len(c.endpoints)
	}
	if c.leader != "" && c.leader == c.nodes[i] {
		c.leader = ""
	}
}
