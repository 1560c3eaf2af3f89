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
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, longestPause
	var last *kv.Error
	for dead := 0; ; {
		reached := false
		for _, i := range c.order(r.forwarded) {
			a, sent, err := c.attempt(ctx, i, r)
			if err == nil {
				return a, nil
			}
			last = err
			reached = reached || sent
			if !sent || retriable(err, r.write) {
				c.forget(i)
			} else {
				return a, err
			}
			if ctx.Err() != nil {
				return nil, c.gaveUp(ctx, r, last)
			}
		}
		if dead++; reached {
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
			return nil, c.gaveUp(ctx, r, last)
		}
	}
}

// gaveUp is the error of a call that ran out of time, where last was the newest
// reason to try again: a retriable one, so nothing was applied.
func (c *Client) gaveUp(ctx context.Context, r request, last *kv.Error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
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
// Invariant 25: nothing is retried on an unknown outcome.
func retriable(e *kv.Error, write bool) bool {
	if write && e.Outcome != kv.OutcomeNotApplied {
		return false
	}
	switch e.Code {
	case kv.CodeNoLeader, kv.CodeNotReady, kv.CodeOverloaded:
		return true
	}
	return false
}

// attempt sends r to endpoint i once. sent says whether any of it may have left this
// machine; if not, nothing can have been applied.
func (c *Client) attempt(ctx context.Context, i int, r request) (a *answer, sent bool, e *kv.Error) {
	req, err := c.newRequest(ctx, i, r)
	if err != nil {
		// Not sent, but no other endpoint would make it better.
		return nil, true, kv.NotApplied(kv.CodeInvalidArgument, "%v", err)
	}
	endpoint := c.endpoints[i].String()
	var connected atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	}))
	resp, err := c.http.Do(req)
	if err == nil {
		a = &answer{endpoint: endpoint, status: resp.StatusCode, header: resp.Header}
		a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes))
		resp.Body.Close()
	}
	if err != nil {
		return nil, connected.Load(), transportError(endpoint, r, connected.Load(), err)
	}
	if a.status >= 200 && a.status < 300 {
		c.learn(i, a.header)
		return a, true, nil
	}
	e = answerError(a, r.write)
	if !retriable(e, r.write) {
		c.learn(i, a.header)
	}
	return a, true, e
}

// transportError is the error of a request that got no (whole) answer.
func transportError(endpoint string, r request, sent bool, err error) *kv.Error {
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

func (c *Client) newRequest(ctx context.Context, i int, r request) (*http.Request, error) {
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
