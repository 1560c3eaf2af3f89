package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

// LoadResult is what a bulk load did.
type LoadResult struct {
	// Applied is how many lines put or deleted something.
	Applied uint64
	// Revision is the one at which all of them stand.
	Revision kv.Revision
}

// Load sends lines to be applied in large batches: the JSON form of a key puts it,
// {"delete":KEY} deletes one. It is not atomic, and takes constant memory here and there.
// If it ends early then the first kv.Error.Applied lines stand and no later one does,
// unless the outcome is kv.OutcomeUnknown; kv.Error.Line is the bad line. Loading the
// same lines again does no harm. It ends with ctx and not at Config.Timeout, which bounds
// each batch. One Read of r may still be under way when Load returns early.
func (c *Client) Load(ctx context.Context, r io.Reader) (LoadResult, error) {
	return c.load(ctx, &upload{r: r, begin: make(chan struct{})})
}

// Change is a line of a bulk load.
type Change struct {
	// Item is put: its Key, Value, ContentType and ExpiresAt count.
	Item kv.Item
	// Delete deletes Item.Key instead.
	Delete bool
}

// LoadChanges is Load of what changes yields, some 32 KiB at once. It stops at an error that changes yields,
// and returns it; what came before it may or may not have been applied.
func (c *Client) LoadChanges(ctx context.Context, changes iter.Seq2[Change, error]) (LoadResult, error) {
	next, stop := iter.Pull2(changes)
	lines := &changeLines{next: next}
	u := &upload{r: lines, begin: make(chan struct{})}
	res, err := c.load(ctx, u)
	// An iterator must not be used while it is at work.
	u.finish()
	stop()
	if lines.err != nil {
		return res, lines.err
	}
	return res, err
}

func (c *Client) load(ctx context.Context, u *upload) (LoadResult, error) {
	start, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	r := request{
		method: http.MethodPost, path: rangePath, query: url.Values{},
		header: http.Header{"Content-Type": {ndjson}, "Expect": {"100-continue"}},
		write:  true, forwarded: true, upload: u, untimed: true,
	}
	// The time to find a node that takes it ends; a load under way does not.
	r.query.Set("timeout", serverTimeout(start).String())
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	unhook := context.AfterFunc(start, func() {
		if !u.begun() {
			stop(start.Err())
		}
	})
	defer unhook()
	a, err := c.doUnbounded(ctx, r)
	if err != nil {
		return LoadResult{Applied: kv.AsError(err).Applied}, loadError(err)
	}
	var res struct {
		Applied  uint64      `json:"applied"`
		Revision kv.Revision `json:"revision"`
	}
	if err := json.Unmarshal(a.body, &res); err != nil {
		return LoadResult{}, unreadable(a, err)
	}
	return LoadResult(res), nil
}

// loadError says of a load whose answer was lost what helps.
func loadError(err error) error {
	e := *kv.AsError(err)
	if e.Code == kv.CodeOutcomeUnknown && e.Applied == 0 {
		e.Msg += "; loading the same lines again does no harm"
	}
	return &e
}

// upload is a body that is read once. It knows whether it was begun, since a request
// whose body was not touched can go elsewhere.
type upload struct {
	begin chan struct{}
	once  sync.Once

	mu   sync.Mutex
	r    io.Reader
	done bool
}

func (u *upload) begun() bool {
	select {
	case <-u.begin:
		return true
	default:
		return false
	}
}

func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.done {
		return 0, io.ErrClosedPipe
	}
	u.once.Do(func() { close(u.begin) })
	return u.r.Read(p)
}

// finish waits for a Read under way and lets no other begin.
func (u *upload) finish() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done = true
}

// changeLines reads changes as lines.
type changeLines struct {
	next func() (Change, error, bool)
	buf  bytes.Buffer
	// ended says that there is no more, err why it ended early.
	ended bool
	err   error
}

// Read fills p: what comes in small pieces is applied in small batches.
func (l *changeLines) Read(p []byte) (int, error) {
	for l.buf.Len() < len(p) && !l.ended {
		ch, err, ok := l.next()
		if ok && err == nil {
			err = ch.encode(&l.buf)
		}
		if err != nil {
			l.err = err
			return 0, err
		}
		l.ended = !ok
	}
	return l.buf.Read(p)
}

func (ch *Change) encode(to *bytes.Buffer) error {
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	if ch.Delete {
		var d struct {
			Delete       *string `json:"delete,omitempty"`
			DeleteBase64 []byte  `json:"delete_base64,omitempty"`
		}
		d.Delete, d.DeleteBase64 = textOrBytes(ch.Item.Key)
		return enc.Encode(d)
	}
	f := formOf(ch.Item)
	return enc.Encode(struct {
		Key         *string   `json:"key,omitempty"`
		KeyBase64   []byte    `json:"key_base64,omitempty"`
		Value       *string   `json:"value,omitempty"`
		ValueBase64 []byte    `json:"value_base64,omitempty"`
		ContentType string    `json:"content_type,omitempty"`
		ExpiresAt   time.Time `json:"expires_at,omitzero"`
	}{f.Key, f.KeyBase64, f.Value, f.ValueBase64, f.ContentType, f.ExpiresAt})
}
