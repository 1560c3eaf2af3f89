package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/settkv/sett/kv"
)

// request is one call of the API, independent of the endpoint.
type request struct {
	method string
	// path is decoded, rawPath percent-encoded ("" if the same).
	path, rawPath string
	query         url.Values
	header        http.Header
	body          []byte
	// upload is a body that can be read once.
	upload *upload
	// stream says that the body of an answer of success is for the caller to read.
	stream bool
	// once is the idempotency key: sending it twice does it once.
	once string
	// write says that sending it twice could do it twice.
	write bool
	// forwarded says that the leader does the work, so it is asked first if known.
	forwarded bool
	// untimed routes take no timeout parameter.
	untimed bool
}

// answer is a response, read whole.
type answer struct {
	endpoint string
	status   int
	header   http.Header
	body     []byte
	// stream is the body of an answer to a request that asked for a stream.
	stream *lineStream
}

const (
	// firstPause and longestPause bound the wait between rounds over the endpoints.
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
	// deadRounds is how many rounds in which no endpoint could even be connected to
	// are enough: about a second and a half. A cluster that answers at all is given
	// the whole timeout.
	deadRounds = 6
	// longestTimeout is what a node takes at most.
	longestTimeout = 10 * time.Minute
	// maxBodyBytes bounds what a client takes in: more than any value or list.
	maxBodyBytes = 256 << 20
)

// do sends r until it has an answer that stands. Its error is a *kv.Error; the answer
// that it was made from comes along, if there was one.
func (c *Client) do(ctx context.Context, r request) (*answer, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	return c.doUnbounded(ctx, r)
}

// doUnbounded is do without Config.Timeout.
func (c *Client) doUnbounded(ctx context.Context, r request) (*answer, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, longestPause
	var last *kv.Error
	unsure := false
	for dead := 0; ; {
		reached := false
		for _, i := range c.order(r.forwarded) {
			began := time.Now()
			a, try := c.try(ctx, i, &r)
			if try.err == nil {
				return a, nil
			}
			last = try.err
			reached = reached || try.sent
			if !unsure && try.sent && r.once != "" && last.Outcome == kv.OutcomeUnknown {
				unsure = true
				var done context.CancelFunc
				ctx, done = context.WithDeadline(ctx, began.Add(onceBudget))
				defer done()
			}
			if !try.again {
				return a, settle(last, &r, unsure)
			}
			c.forget(i)
			if ctx.Err() != nil {
				return nil, c.gaveUp(ctx, &r, last, unsure)
			}
		}
		if dead++; reached || unsure {
			dead = 0
		}
		if dead == deadRounds {
			return nil, last
		}
		wait := pause.NextBackOff()
		if last.Code == kv.CodeOverloaded {
			wait = max(wait, last.RetryAfter)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, c.gaveUp(ctx, &r, last, unsure)
		}
	}
}

// bounded is ctx with Config.Timeout, if it has no deadline.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.timeout)
}

// gaveUp is the error of a call that ran out of time, where last was the newest
// reason to try again.
func (c *Client) gaveUp(ctx context.Context, r *request, last *kv.Error, unsure bool) error {
	if unsure {
		return settle(last, r, true)
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		e := kv.Errorf(kv.CodeTimeout, "canceled by the caller")
		if r.write {
			e.Outcome = kv.OutcomeNotApplied
		}
		e.Err = ctx.Err()
		return e
	}
	return last
}

// retriable says whether a request that failed with e, after it was sent, may be
// sent again.
//
// Invariant 25: nothing is retried on an unknown outcome without an idempotency key.
func retriable(e *kv.Error, r *request) bool {
	if r.upload != nil && r.upload.begun() {
		return false
	}
	if r.write && e.Outcome == kv.OutcomeUnknown {
		return r.once != "" || mutantRetryWithoutKey
	}
	if r.write && e.Outcome != kv.OutcomeNotApplied {
		return false
	}
	switch e.Code {
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeOverloaded:
		return true
	}
	return false
}

// verdict is what became of one attempt.
type verdict struct {
	err *kv.Error
	// sent says that some of the request may have left this machine.
	sent bool
	// again says that it may be sent again.
	again bool
}

// shortestTry is below what the time left is not divided among endpoints.
const shortestTry = 2 * time.Second

// try makes one attempt of a call that ends with ctx. What is safe to send again gets
// half of the time that is left, so that a node that hangs does not use it all up.
func (c *Client) try(ctx context.Context, i int, r *request) (*answer, verdict) {
	tryCtx, short := ctx, false
	if deadline, ok := ctx.Deadline(); ok && len(c.endpoints) > 1 && r.upload == nil && (!r.write || r.once != "") {
		if left := time.Until(deadline); left > 2*shortestTry {
			var cancel context.CancelFunc
			tryCtx, cancel = context.WithTimeout(ctx, left/2)
			defer cancel()
			short = true
		}
	}
	a, sent, err := c.attempt(tryCtx, i, r)
	if err == nil {
		return a, verdict{}
	}
	again := !sent || retriable(err, r) || short && err.Code == kv.CodeTimeout && ctx.Err() == nil
	if !again && a != nil {
		c.learn(i, a.header, r.forwarded)
	}
	return a, verdict{err: err, sent: sent, again: again}
}

// attempt sends r to endpoint i once. sent says whether any of it may have left this
// machine; if not, nothing can have been applied.
func (c *Client) attempt(ctx context.Context, i int, r *request) (a *answer, sent bool, e *kv.Error) {
	// A stream outlives the time that its start may take.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, cancel)
	defer func() {
		if unhook(); a == nil || a.stream == nil {
			cancel()
		}
	}()
	req, err := c.newRequest(ctx, i, r)
	if err != nil {
		// Not sent, but no other endpoint would make it better.
		return nil, true, kv.NotApplied(kv.CodeInvalidArgument, "%v", err)
	}
	endpoint := c.endpoints[i].String()
	var connected atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(life, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}))
	resp, err := c.http.Do(req)
	if err == nil {
		a = &answer{endpoint: endpoint, status: resp.StatusCode, header: resp.Header}
		if r.stream && success(a.status) {
			a.stream = &lineStream{index: i, endpoint: endpoint, lines: newLineReader(resp.Body), body: resp.Body, cancel: cancel}
		} else {
			a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes))
			resp.Body.Close()
		}
	}
	if err != nil {
		if cause := ctx.Err(); cause != nil {
			err = cause // the reason why life was canceled
		}
		return nil, connected.Load(), transportError(endpoint, r, connected.Load(), err)
	}
	if success(a.status) {
		c.learn(i, a.header, r.forwarded)
		return a, true, nil
	}
	return a, true, answerError(a, r.write)
}

func success(status int) bool { return status >= 200 && status < 300 }

// transportError is the error of a request that got no (whole) answer.
func transportError(endpoint string, r *request, sent bool, err error) *kv.Error {
	// The URL error repeats method and URL, which say nothing to the caller.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var e *kv.Error
	switch {
	case !sent:
		e = kv.Errorf(kv.CodeNotReady, "cannot connect to %s: %v: check that the node runs and the endpoint is right", endpoint, reason(err))
		if r.write {
			e.Outcome = kv.OutcomeNotApplied
		}
	case r.write:
		e = kv.Unknown(nil, "no answer from %s: %v: read back to see whether the write was applied", endpoint, reason(err))
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		e = kv.Errorf(kv.CodeTimeout, "no answer from %s in time: try again, or allow more time", endpoint)
	default:
		// A read, broken off: not ready is what makes it go elsewhere.
		e = kv.Errorf(kv.CodeNotReady, "no answer from %s: %v", endpoint, reason(err))
	}
	e.Err = err
	return e
}

// reason shortens the context's errors, which read badly in the middle of a sentence.
func reason(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "out of time"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was broken off"
	}
	return err.Error()
}

func (c *Client) newRequest(ctx context.Context, i int, r *request) (*http.Request, error) {
	base := c.endpoints[i]
	u := *base
	u.Path = base.Path + r.path
	if r.rawPath != "" {
		u.RawPath = base.EscapedPath() + r.rawPath
	}
	query := url.Values{}
	for k, v := range r.query {
		query[k] = v
	}
	if !r.untimed {
		query.Set("timeout", serverTimeout(ctx).String())
	}
	u.RawQuery = query.Encode()
	var body io.Reader
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	if r.upload != nil {
		body = r.upload
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	return req, nil
}

// serverTimeout leaves the server a little less than what is left of ctx: its own
// answer tells whether a write was applied, a deadline here does not.
func serverTimeout(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return DefaultTimeout
	}
	left := time.Until(deadline)
	left -= min(left/10, 250*time.Millisecond)
	return min(max(left.Round(time.Millisecond), time.Millisecond), longestTimeout)
}
