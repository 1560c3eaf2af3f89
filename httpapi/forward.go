package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/settkv/sett/kv"
)

// relayBufferBytes is the biggest answer that is read whole before it is passed on,
// so that one cut short is still an error and not a broken-off body.
const relayBufferBytes = 64 << 10

// relayBytes bounds what a transaction holds that is sent to the leader without its
// request: commands share a stream, and a big one would hold up the others.
const relayBytes = 48 << 10

// relayable reports whether t's command is small, and its result too.
func relayable(t *kv.Txn) bool {
	size := 0
	for i := range t.If {
		size += len(t.If[i].Key) + len(t.If[i].Value) + 32
	}
	for _, ops := range [][]kv.Op{t.Then, t.Else} {
		for i := range ops {
			op := &ops[i]
			if op.Previous || op.Kind == kv.OpGet || op.Kind == kv.OpRange {
				return false
			}
			size += len(op.Key) + len(op.Value) + len(op.ContentType) + len(op.Range.Start) + len(op.Range.End) + 64
		}
	}
	return size <= relayBytes
}

const (
	// forwardIdle is how long a connection to the leader is kept unused. Shorter than any
	// server's patience: a request must not meet a connection that the leader is just
	// closing, because then its fate would be unknown.
	forwardIdle       = 30 * time.Second
	forwardBufferSize = 16 << 10
)

func newForwardTransport(conns int, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:         dial,
		MaxConnsPerHost:     conns,
		MaxIdleConnsPerHost: conns,
		IdleConnTimeout:     forwardIdle,
		DisableCompression:  true,
		ForceAttemptHTTP2:   false,
		WriteBufferSize:     forwardBufferSize,
		ReadBufferSize:      forwardBufferSize,
	}
}

// sendToLeader sends req once. sent is set once bytes may have reached the leader.
func (s *Server) sendToLeader(req *http.Request, sent *atomic.Bool) (*http.Response, error) {
	// The transport begins anew by itself if nothing was written, if the method is safe to
	// repeat, or if there is an Idempotency-Key. In the last case bytes may have arrived.
	keyed := len(req.Header.Values(headerIdempotencyKey)) > 0
	trace := &httptrace.ClientTrace{
		GetConn: func(string) {
			if !keyed {
				sent.Store(false)
			}
		},
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	}
	return s.forward.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
}

// worthRetry reports whether err says that the request was not done because there is,
// or was, no leader to do it.
func worthRetry(err error, write bool) bool {
	var e *kv.Error
	if !errors.As(err, &e) {
		return false
	}
	if e.Final || (e.Code != kv.CodeNoLeader && e.Code != kv.CodeNotReady) {
		return false
	}
	return !write || e.Outcome == kv.OutcomeNotApplied
}

func errNoLeader() *kv.Error {
	return kv.NotApplied(kv.CodeNoLeader, "no leader is known or reachable; if this lasts, look at /readyz of the nodes: a majority of voters must be up and in touch")
}

// awaitLeader waits until the leader may be another one, or pause has passed; false
// means that the request must end instead.
func (x *exchange) awaitLeader(ctx context.Context, changed <-chan struct{}, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
		return false
	case <-x.s.stopping:
		return false
	}
	return ctx.Err() == nil
}

// leaderCall is something that only the leader can do.
type leaderCall struct {
	// local does it on this node.
	local func(context.Context) error
	// relay, if not nil, has the leader at an address do it, instead of the request being
	// forwarded.
	relay func(ctx context.Context, addr string) error
	// body is sent with the request when it is forwarded.
	body []byte
	// header is added to the request when it is forwarded.
	header http.Header
	// answer takes the leader's good answer. If nil, the answer is passed on to the
	// client, whatever it is; else a bad one is an error.
	answer func(body []byte, h http.Header) error
	// stream says that ctx bounds the time until the answer begins, not the answer.
	stream bool
	// repeat says that the state machine knows the request again, so that an attempt whose
	// fate is unknown may be made again.
	repeat bool
	// patient says that a leader that is overloaded is asked again.
	patient bool
	// unsure is set once the fate of an attempt is unknown.
	unsure bool
}

// again reports whether the call may be made again after err.
func (c *leaderCall) again(err error, write bool) bool {
	if worthRetry(err, write) || (c.patient && errors.Is(err, kv.ErrOverloaded)) {
		return true
	}
	return c.repeat && inDoubt(err)
}

// onLeader does call, here if this node leads, else by forwarding the request. While
// there is no leader it waits and tries again, until ctx ends. relayed reports that the
// leader's answer has been passed on and nothing is left to do.
//
// Invariant 25: an attempt is repeated only if the last one is known not to have been
// applied, or if it has an idempotency key; and a request that was forwarded once is not
// forwarded again.
func (x *exchange) onLeader(ctx context.Context, call *leaderCall) (relayed bool, err error) {
	c := x.s.cfg.Cluster
	pause := firstRetry
	for {
		changed := c.LeaderChanged()
		id, addr, known := c.Leader()
		switch {
		case c.IsLeader():
			err = call.local(ctx)
		case x.forwardedBy != "":
			return false, errNoLeader()
		case known && id != c.Self():
			if x.params.flag("redirect") {
				return true, x.redirectTo(addr)
			}
			if call.relay != nil {
				err = x.relayedBy(id, call.relay(ctx, addr))
				break
			}
			relayed, err = x.forward(ctx, addr, call)
			if relayed {
				return true, nil
			}
		default:
			err = errNoLeader()
		}
		call.unsure = call.unsure || (call.repeat && inDoubt(err))
		if err == nil || !call.again(err, x.write) || x.forwardedBy != "" {
			return false, err
		}
		if !x.awaitLeader(ctx, changed, pause) {
			return false, err
		}
		pause = min(2*pause, lastRetry)
	}
}

// redirect answers 307 if the request asks for it and another node leads; it waits
// for a leader within ctx. It comes before the body is read.
func (x *exchange) redirect(ctx context.Context) (done bool, err error) {
	c := x.s.cfg.Cluster
	if !x.params.flag("redirect") {
		return false, nil
	}
	pause := firstRetry
	for {
		changed := c.LeaderChanged()
		id, addr, known := c.Leader()
		switch {
		case c.IsLeader():
			return false, nil
		case x.forwardedBy != "":
			return false, errNoLeader()
		case known && id != c.Self():
			return true, x.redirectTo(addr)
		}
		if !x.awaitLeader(ctx, changed, pause) {
			return false, errNoLeader()
		}
		pause = min(2*pause, lastRetry)
	}
}

func (x *exchange) redirectTo(addr string) error {
	u, err := leaderURL(addr, x.r.URL)
	if err != nil {
		return err
	}
	if x.body.unread() {
		x.refuseBody()
	}
	x.Header().Set("Location", u.String())
	return x.writeBytes(http.StatusTemporaryRedirect, "", nil)
}

// leaderURL is the URL of the same resource on the leader: the path's bytes exactly,
// and the query with the bytes escaped that no request line may hold.
func leaderURL(addr string, from *url.URL) (*url.URL, error) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	base, err := url.Parse(addr)
	if err != nil || base.Host == "" {
		return nil, &kv.Error{Code: kv.CodeNoLeader, Outcome: kv.OutcomeNotApplied, Msg: "the leader's HTTP address is malformed; check http-advertise of that node", Err: err}
	}
	return &url.URL{
		Scheme: base.Scheme, Host: base.Host,
		Path: from.Path, RawPath: from.EscapedPath(), RawQuery: safeQuery(from.RawQuery),
	}, nil
}

func safeQuery(q string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(q) {
		if c := q[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' || c == '#' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
			continue
		}
		b.WriteByte(q[i])
	}
	return b.String()
}

// forward sends the request to the leader at addr and passes the answer on (relayed).
// An error that is worth a retry means that nothing was applied.
//
// Invariant 24: from the moment that a connection is at hand, bytes may have reached
// the leader, and a write without an answer is of unknown outcome.
func (x *exchange) forward(ctx context.Context, addr string, call *leaderCall) (relayed bool, err error) {
	u, err := leaderURL(addr, x.r.URL)
	if err != nil {
		return false, err
	}
	began := time.Now()
	var sent atomic.Bool
	rctx, cancel := context.WithCancel(x.r.Context())
	defer cancel()
	stopTimeout, stopTenure := context.AfterFunc(ctx, cancel), func() bool { return true }
	if t := x.s.tenures.of(addr); t != nil {
		stopTenure = context.AfterFunc(t.ctx, cancel)
	}
	defer func() {
		stopTimeout()
		stopTenure()
	}()
	req, err := http.NewRequestWithContext(rctx, x.r.Method, u.String(), bytes.NewReader(call.body))
	if err != nil {
		return false, err
	}
	req.URL = u
	x.forwardHeaders(ctx, req.Header)
	maps.Copy(req.Header, call.header)

	resp, err := x.s.sendToLeader(req, &sent)
	if err != nil {
		return false, x.lostForward(ctx, err, sent.Load())
	}
	defer func() { _ = resp.Body.Close() }()
	var head []byte
	if resp.ContentLength <= relayBufferBytes && !(call.stream && resp.StatusCode == http.StatusOK) {
		head, err = io.ReadAll(io.LimitReader(resp.Body, relayBufferBytes))
		if err != nil {
			return false, x.lostForward(ctx, err, true)
		}
	}
	if err := call.refused(resp, head, x.write); err != nil {
		x.s.metrics.forwards.WithLabelValues("refused").Inc()
		return false, err
	}
	if resp.Header.Get(headerServedBy) == "" {
		// Something in between, or instead of the leader, has answered: it can't know.
		return false, x.lostForward(ctx, errors.New("the answer is not a node's: "+resp.Status), true)
	}
	x.s.metrics.forwards.WithLabelValues("answered").Inc()
	x.timing = parseServerTiming(resp.Header.Get("Server-Timing"))
	x.timing.Forward = max(0, time.Since(began)-x.timing.Queue-x.timing.Replicate-x.timing.Apply-x.timing.Read)
	if call.answer != nil {
		return false, call.answer(head, resp.Header)
	}
	if call.stream {
		// What the leader has begun to send is good, however long it takes and whoever leads next.
		stopTimeout()
		stopTenure()
		x.paused = true
	}
	return true, x.relay(resp, head)
}

// relayedBy notes what came of a transaction that the leader was asked to do.
func (x *exchange) relayedBy(leader string, err error) error {
	result := "answered"
	switch {
	case err == nil:
	case inDoubt(err):
		result = "lost"
		if mutantRetryUnknown {
			err = errNoLeader()
		}
	case worthRetry(err, true):
		result = "refused"
	}
	x.s.metrics.forwards.WithLabelValues(result).Inc()
	if result == "answered" {
		x.servedBy = leader
	}
	return err
}

// lostForward is the error of a forward without an answer.
func (x *exchange) lostForward(ctx context.Context, err error, sent bool) error {
	if !sent {
		x.s.metrics.forwards.WithLabelValues("not_sent").Inc()
		e := errNoLeader()
		e.Err = err
		return e
	}
	x.s.metrics.forwards.WithLabelValues("lost").Inc()
	if x.write && !mutantRetryUnknown {
		return kv.Unknown(err, "the request was forwarded to the leader and its answer was lost; read the key before trying again")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := errNoLeader() // a read can be asked again
	e.Err = err
	return e
}

// refused returns the leader's error if it is not to be passed on as it is: because
// another attempt is worth it, because the fate of an earlier one is open, or because
// the call takes its answer itself.
func (c *leaderCall) refused(resp *http.Response, body []byte, write bool) error {
	if resp.StatusCode < http.StatusBadRequest {
		return nil
	}
	if resp.StatusCode != http.StatusServiceUnavailable && c.answer == nil && !c.repeat {
		return nil
	}
	var p problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		return nil //nolint:nilerr // not a problem of ours: it has no Sett-Served-By either
	}
	e := p.kvError()
	if c.answer != nil || worthRetry(e, write) || !c.lastWord(e) {
		return p.detailed(e)
	}
	return nil
}

// hopHeaders are those of one connection, or that the far side makes itself.
func hopHeader(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Expect", "Host", "Content-Length", "Http2-Settings":
		return true
	}
	return false
}

func copyHeaders(to, from http.Header) {
	var named []string // by Connection
	for _, v := range from.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			named = append(named, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name, v := range from {
		if !hopHeader(name) && !slices.Contains(named, name) {
			to[name] = v
		}
	}
}

func (x *exchange) forwardHeaders(ctx context.Context, h http.Header) {
	copyHeaders(h, x.r.Header)
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "") // the transport would add its own
	}
	h.Set(headerForwarded, x.s.cfg.Cluster.Self())
	h.Set(headerClusterID, x.s.cfg.Cluster.ClusterID())
	h.Set(headerRequestID, x.id)
	if d, ok := ctx.Deadline(); ok {
		// The leader ends a little earlier, so that its answer arrives.
		left := time.Until(d)
		left -= min(left/10, 100*time.Millisecond)
		h.Set(headerBudget, strconv.FormatInt(max(1, left.Milliseconds()), 10))
	}
}

// relay passes the leader's answer on. head is the whole body if it is small.
func (x *exchange) relay(resp *http.Response, head []byte) error {
	h := x.Header()
	copyHeaders(h, resp.Header)
	for _, name := range []string{"Date", "Server", "Server-Timing", headerNode, headerRequestID} {
		h.Del(name)
	}
	x.passed = true
	if n := resp.Header.Get("Content-Length"); n != "" {
		h.Set("Content-Length", n)
	}
	x.WriteHeader(resp.StatusCode)
	if x.r.Method == http.MethodHead {
		return nil
	}
	if len(head) > 0 {
		if _, err := x.Write(head); err != nil {
			return nil //nolint:nilerr // the client is gone
		}
	}
	if int64(len(head)) == resp.ContentLength {
		return nil
	}
	buf := make([]byte, ProgressBytes)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, err := x.Write(buf[:n]); err != nil {
				return nil //nolint:nilerr // the client is gone
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			// The status is out: a broken connection is the only way to say that this is not all.
			_ = x.flush() // what has come may say why
			panic(http.ErrAbortHandler)
		}
	}
}

// checkForwarded reads the headers of a request that another node forwarded.
//
// Invariant 28: a forward names its cluster, and one of another cluster is refused,
// loudly.
func (x *exchange) checkForwarded() error {
	from := x.r.Header.Get(headerForwarded)
	if from == "" {
		return nil
	}
	own := x.s.cfg.Cluster.ClusterID()
	theirs := x.r.Header.Get(headerClusterID)
	if own == "" {
		e := kv.NotApplied(kv.CodeNotReady, "this node belongs to no cluster yet")
		return e
	}
	if theirs != own {
		x.s.log.Warn("refused a forward of another cluster", "from", quote(from), "their_cluster", quote(theirs), "cluster", own, "remote", x.r.RemoteAddr)
		return kv.NotApplied(kv.CodeForbidden, "the forwarding node belongs to another cluster; one of the two has a wrong http-advertise or join address")
	}
	x.forwardedBy = from
	if ms, err := strconv.ParseInt(x.r.Header.Get(headerBudget), 10, 64); err == nil && ms > 0 && ms <= MaxTimeout.Milliseconds() {
		x.deadline = x.start.Add(time.Duration(ms) * time.Millisecond)
	}
	return nil
}
