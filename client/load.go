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
	return c.load(ctx, newUpload(r))
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
	u := newUpload(lines)
	res, err := c.load(ctx, u)
	// An iterator must not be used while it is at work.
	<-u.ended
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
	defer u.stop()
	defer context.AfterFunc(ctx, u.stop)()
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
//
// What it reads from may block for as long as it likes, and the transport waits for a
// read of the body before it gives a request up. So a goroutine reads, from the first
// read of the body on until stop; a read under way then is its last.
type upload struct {
	from  io.Reader
	pr    *io.PipeReader
	pw    *io.PipeWriter
	once  sync.Once
	begin chan struct{}
	ended chan struct{}
}

func newUpload(r io.Reader) *upload {
	u := &upload{from: r, begin: make(chan struct{}), ended: make(chan struct{})}
	u.pr, u.pw = io.Pipe()
	return u
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
	u.once.Do(func() {
		close(u.begin)
		go func() {
			defer close(u.ended)
			_, err := io.Copy(u.pw, u.from)
			u.pw.CloseWithError(err)
		}()
	})
	return u.pr.Read(p)
}

// stop ends a read of the body that waits, and lets no other begin.
func (u *upload) stop() {
	u.once.Do(func() { close(u.ended) })
	_ = u.pr.Close() // never fails
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
