package blackbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status is what these tests read of /v1/status.
type Status struct {
	ID            string `json:"id"`
	ServerID      string `json:"server_id"`
	Role          string `json:"role"`
	AppliedIndex  uint64 `json:"applied_index"`
	LastLogIndex  uint64 `json:"last_log_index"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	Revision      uint64 `json:"revision"`
	Keys          uint64 `json:"keys"`
	Digest        Digest `json:"digest"`
}

// Digest is the set hash of all keys at a revision.
type Digest struct {
	Revision uint64 `json:"revision"`
	Hash     string `json:"hash"`
}

// Member is what these tests read of a member in /v1/cluster.
type Member struct {
	ID       string `json:"id"`
	ServerID string `json:"server_id"`
	Voter    bool   `json:"voter"`
	State    string `json:"state"`
	Role     string `json:"role"`
}

// Cluster is what these tests read of /v1/cluster.
type Cluster struct {
	Leader  string   `json:"leader"`
	Members []Member `json:"members"`
}

var plain = &http.Client{Timeout: 5 * time.Second}

// Fetch does a request without a body and returns the answer's; an answer that is
// not 2xx is an error with its text.
func Fetch(ctx context.Context, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := plain.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: read answer: %w", method, url, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %d %s", method, url, resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return body, nil
}

func fetchJSON(ctx context.Context, url string, into any) error {
	body, err := Fetch(ctx, http.MethodGet, url)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("parse the answer of %s: %w", url, err)
	}
	return nil
}

// FetchStatus asks one node about itself.
func FetchStatus(ctx context.Context, endpoint string) (Status, error) {
	var s Status
	err := fetchJSON(ctx, endpoint+"/v1/status", &s)
	return s, err
}

// FetchCluster asks the nodes in turn for the cluster, until one answers and names
// a leader.
func FetchCluster(ctx context.Context, endpoints []string) (Cluster, error) {
	var errs []error
	for _, e := range endpoints {
		var c Cluster
		err := fetchJSON(ctx, e+"/v1/cluster?timeout=2s", &c)
		if err == nil && c.Leader != "" {
			return c, nil
		}
		errs = append(errs, errOr(err, fmt.Errorf("%s knows no leader", e)))
	}
	return Cluster{}, errors.Join(errs...)
}

// Await repeats check every 50 ms until it returns nil. When ctx ends, the error
// says what check said last.
func Await(ctx context.Context, what string, check func(context.Context) error) error {
	start := time.Now()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("waited %v for %s: %w", time.Since(start).Round(time.Millisecond), what, err)
		}
	}
}

// AwaitReady waits until every endpoint answers 200 on /readyz.
func AwaitReady(ctx context.Context, endpoints ...string) error {
	for _, e := range endpoints {
		if err := Await(ctx, e+" to be ready", func(ctx context.Context) error {
			_, err := Fetch(ctx, http.MethodGet, e+"/readyz?verbose")
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// AwaitLeader waits until the nodes name a leader, which is not the one called
// not, and returns its id.
func AwaitLeader(ctx context.Context, endpoints []string, not string) (string, error) {
	var leader string
	err := Await(ctx, "a leader other than "+strconv.Quote(not), func(ctx context.Context) error {
		c, err := FetchCluster(ctx, endpoints)
		leader = c.Leader
		if err == nil && leader == not {
			err = fmt.Errorf("%s still leads", not)
		}
		return err
	})
	return leader, err
}

// AwaitVoters waits until the cluster has exactly n members, all alive voters.
func AwaitVoters(ctx context.Context, endpoints []string, n int) (Cluster, error) {
	var c Cluster
	err := Await(ctx, fmt.Sprintf("%d voters, all alive", n), func(ctx context.Context) (err error) {
		if c, err = FetchCluster(ctx, endpoints); err != nil {
			return err
		}
		good := 0
		for _, m := range c.Members {
			if m.Voter && m.State == "alive" {
				good++
			}
		}
		if good != n || len(c.Members) != n {
			return fmt.Errorf("members are %+v", c.Members)
		}
		return nil
	})
	return c, err
}

// AwaitAcked waits until the ledger counts at least n acknowledged writes.
func AwaitAcked(ctx context.Context, l *Ledger, n int) error {
	return Await(ctx, fmt.Sprintf("%d acknowledged writes", n), func(context.Context) error {
		if c := l.Counts(); c.Acked < n {
			return fmt.Errorf("there are %s", c)
		}
		return nil
	})
}

// AwaitEqual waits until all nodes stand at one revision and compares their
// digests there; different ones are a final error. No load may run.
func AwaitEqual(ctx context.Context, endpoints []string) (Status, error) {
	var first Status
	var diverged error
	err := Await(ctx, "all nodes to stand at one revision", func(ctx context.Context) error {
		var all []Status
		for _, e := range endpoints {
			s, err := FetchStatus(ctx, e)
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		first = all[0]
		for _, s := range all[1:] {
			if s.Digest.Revision != first.Digest.Revision {
				return fmt.Errorf("%s is at %d, %s at %d", first.ID, first.Digest.Revision, s.ID, s.Digest.Revision)
			}
			if s.Digest.Hash != first.Digest.Hash || s.Keys != first.Keys {
				diverged = fmt.Errorf("%s and %s differ at revision %d: %s of %d keys, %s of %d keys",
					first.ID, s.ID, s.Digest.Revision, first.Digest.Hash, first.Keys, s.Digest.Hash, s.Keys)
			}
		}
		return nil
	})
	if err == nil {
		err = diverged
	}
	if err == nil && first.Digest.Hash == "" {
		err = errors.New("the nodes show no digest")
	}
	return first, err
}

// Metric reads one sample of a node's /metrics by its name with labels, exactly as
// it is printed there; absent is false.
func Metric(ctx context.Context, endpoint, sample string) (value float64, present bool, err error) {
	body, err := Fetch(ctx, http.MethodGet, endpoint+"/metrics")
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, sample+" "); ok {
			value, err = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return value, true, err
		}
	}
	return 0, false, nil
}

// FreePorts finds n ports on loopback that are free for TCP and UDP. It looks below
// the range that systems take for outgoing connections, so that a port is still
// free when its node is started again.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range 2000 {
		p := 12000 + rand.IntN(18000)
		if slices.Contains(ports, p) || !PortFree(p) {
			continue
		}
		if ports = append(ports, p); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("found %d free ports of %d", len(ports), n)
}

// PortFree says whether a port on loopback is free for TCP and UDP.
func PortFree(p int) bool {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
	t, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	_ = t.Close() // it was opened only to see whether it can be
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	_ = u.Close() // as above
	return true
}
