package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

// WriteOptions are the conditions and extras of a write. The zero value has none.
type WriteOptions struct {
	// IfMatch lets the write happen only if the key's mod revision is this one; 0 is
	// no condition.
	IfMatch kv.Revision
	// IfExists and IfAbsent let it happen only if the key exists, or does not.
	IfExists, IfAbsent bool
	// TTL ends the key after this time; 0 is never. Put only.
	TTL time.Duration
	// ContentType is stored with the value. Put only.
	ContentType string
	// Previous asks for the item as it was before.
	Previous bool
	// IdempotencyKey names the write, in up to kv.MaxOnceKeyBytes bytes: whoever sends the
	// same write under the same key within kv.OnceWindow gets the answer of the first and
	// changes nothing. Default: a random one for each call.
	IdempotencyKey string
}

// WriteResult is what became of a write that was applied.
type WriteResult struct {
	// Revision is the write's own.
	Revision kv.Revision
	// Created says that the key did not exist before. After Incr and Append it is known
	// only if WriteOptions.Previous was set.
	Created bool
	// Number is the value after an Incr.
	Number int64
	// Previous is the item before the write, nil if there was none or none was asked.
	Previous *kv.Item
	// Replayed says that this is the answer that the write got when it was first sent: by
	// an attempt whose answer was lost, or by somebody else under the same idempotency key.
	Replayed bool
}

// Put stores value under key. It returns kv.ErrPreconditionFailed if a condition of
// o does not hold. value is not kept.
func (c *Client) Put(ctx context.Context, key string, value []byte, o WriteOptions) (WriteResult, error) {
	r := keyRequest(http.MethodPut, key)
	r.body = value
	if value == nil {
		r.body = []byte{}
	}
	if o.TTL != 0 {
		r.query.Set("ttl", o.TTL.String())
	}
	if o.ContentType != "" {
		r.header.Set("Content-Type", o.ContentType)
	}
	return c.write(ctx, r, o)
}

// Delete removes key; kv.ErrNotFound if there was none.
func (c *Client) Delete(ctx context.Context, key string, o WriteOptions) (WriteResult, error) {
	return c.write(ctx, keyRequest(http.MethodDelete, key), o)
}

// Incr adds by to the decimal integer in key, absent being 0, and returns the new
// number in WriteResult.Number; kv.ErrConflict if the value is no 64-bit integer or
// would not stay one.
func (c *Client) Incr(ctx context.Context, key string, by int64, o WriteOptions) (WriteResult, error) {
	r := keyRequest(http.MethodPost, key)
	r.query.Set("op", "incr")
	r.query.Set("by", strconv.FormatInt(by, 10))
	res, a, err := c.writeAnswer(ctx, r, o)
	if err != nil {
		return res, err
	}
	if o.Previous {
		// The answer is what was there before; the number follows from it.
		var before int64
		if res.Previous != nil {
			before, err = strconv.ParseInt(string(res.Previous.Value), 10, 64)
		}
		res.Number = before + by
	} else {
		res.Number, err = strconv.ParseInt(strings.TrimSpace(string(a.body)), 10, 64)
	}
	if err != nil {
		return res, unreadable(a, err)
	}
	return res, nil
}

// Append adds value to the end of what key holds; absent is empty.
func (c *Client) Append(ctx context.Context, key string, value []byte, o WriteOptions) (WriteResult, error) {
	r := keyRequest(http.MethodPost, key)
	r.query.Set("op", "append")
	r.body = value
	if value == nil {
		r.body = []byte{}
	}
	return c.write(ctx, r, o)
}

// Touch sets the time that key has left, its value untouched; kv.ErrNotFound if
// there is none.
func (c *Client) Touch(ctx context.Context, key string, ttl time.Duration, o WriteOptions) (WriteResult, error) {
	r := keyRequest(http.MethodPost, key)
	r.query.Set("op", "touch")
	r.query.Set("ttl", ttl.String())
	return c.write(ctx, r, o)
}

// Get reads key. The revision is the one at which the answer holds, valid with
// kv.ErrNotFound too.
func (c *Client) Get(ctx context.Context, key string, o kv.ReadOptions) (kv.Item, kv.Revision, error) {
	r := keyRequest(http.MethodGet, key)
	r.write, r.forwarded = false, o.Consistency == kv.Leader
	setReadOptions(r.query, o)
	a, err := c.do(ctx, r)
	if err != nil {
		return kv.Item{}, revisionOf(a), err
	}
	item, err := itemOf(key, a)
	if err != nil {
		return kv.Item{}, 0, unreadable(a, err)
	}
	return item, revisionOf(a), nil
}

// setReadOptions adds the parameters of o to q.
func setReadOptions(q url.Values, o kv.ReadOptions) {
	if o.Consistency != kv.Linearizable {
		q.Set("consistency", o.Consistency.String())
	}
	if o.Revision != 0 {
		q.Set("revision", formatRevision(o.Revision))
	}
	if o.MinRevision != 0 {
		q.Set("min_revision", formatRevision(o.MinRevision))
	}
	if o.MaxStaleness != 0 {
		q.Set("max_staleness", o.MaxStaleness.String())
	}
}

func keyRequest(method, key string) request {
	return request{
		method: method, path: keyPrefix + key, rawPath: keyPrefix + escapeKey(key),
		query: url.Values{}, header: http.Header{}, write: true, forwarded: true,
	}
}

func (c *Client) write(ctx context.Context, r request, o WriteOptions) (WriteResult, error) {
	res, _, err := c.writeAnswer(ctx, r, o)
	return res, err
}

func (c *Client) writeAnswer(ctx context.Context, r request, o WriteOptions) (WriteResult, *answer, error) {
	switch {
	case o.IfMatch != 0:
		r.header.Set("If-Match", `"`+formatRevision(o.IfMatch)+`"`)
	case o.IfExists:
		r.header.Set("If-Match", "*")
	}
	if o.IfAbsent {
		r.header.Set("If-None-Match", "*")
	}
	if o.Previous {
		r.query.Set("previous", "1")
	}
	r.setOnce(o.IdempotencyKey)
	a, err := c.do(ctx, r)
	if err != nil {
		return WriteResult{Revision: revisionOf(a), Replayed: replayed(a)}, a, err
	}
	res := WriteResult{
		Revision: revisionOf(a),
		Created:  a.status == http.StatusCreated,
		Replayed: replayed(a),
	}
	if o.Previous {
		if res.Previous, err = decodeForm(a.body); err != nil {
			return res, a, unreadable(a, err)
		}
		res.Created = res.Previous == nil
	}
	return res, a, nil
}

// unreadable is for an answer of success whose content makes no sense: the write,
// if it was one, was applied, but what it did is not known.
func unreadable(a *answer, err error) *kv.Error {
	return kv.Unknown(err, "%s answered %d with content that cannot be read: is it a Sett node of another version?", a.endpoint, a.status)
}

const keyPrefix = "/v1/kv/"

// escapeKey percent-encodes every byte of a key that is not unreserved, the slash
// included, so that nothing between here and the node can take it for structure.
func escapeKey(key string) string {
	const hex = "0123456789ABCDEF"
	// A key of dots only would be a path that every URL library shortens.
	dots := strings.Trim(key, ".") == ""
	var b strings.Builder
	for i := range len(key) {
		ch := key[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9', ch == '-', ch == '_', ch == '~', ch == '.' && !dots:
			b.WriteByte(ch)
		default:
			b.WriteByte('%')
			b.WriteByte(hex[ch>>4])
			b.WriteByte(hex[ch&15])
		}
	}
	return b.String()
}

func formatRevision(r kv.Revision) string { return strconv.FormatUint(uint64(r), 10) }

// revisionOf reads Sett-Revision; 0 if there is none.
func revisionOf(a *answer) kv.Revision {
	if a == nil {
		return 0
	}
	n, err := strconv.ParseUint(a.header.Get("Sett-Revision"), 10, 64)
	if err != nil {
		return 0
	}
	return kv.Revision(n)
}

// itemOf reads the raw form of a key.
func itemOf(key string, a *answer) (kv.Item, error) {
	var number [3]uint64
	for i, text := range []string{strings.Trim(a.header.Get("ETag"), `"`), a.header.Get("Sett-Create-Revision"), a.header.Get("Sett-Version")} {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return kv.Item{}, errors.New("no ETag, Sett-Create-Revision or Sett-Version")
		}
		number[i] = n
	}
	item := kv.Item{
		Key: key, Value: a.body, ContentType: a.header.Get("Content-Type"),
		ModRevision: kv.Revision(number[0]), CreateRevision: kv.Revision(number[1]), Version: number[2],
	}
	if text := a.header.Get("Sett-Expires-At"); text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return kv.Item{}, fmt.Errorf("read Sett-Expires-At: %w", err)
		}
		item.ExpiresAt = at.UTC()
	}
	return item, nil
}

// form is the JSON form of a key.
type form struct {
	Key            *string     `json:"key,omitempty"`
	KeyBase64      []byte      `json:"key_base64,omitempty"`
	Value          *string     `json:"value,omitempty"`
	ValueBase64    []byte      `json:"value_base64,omitempty"`
	CreateRevision kv.Revision `json:"create_revision"`
	ModRevision    kv.Revision `json:"mod_revision"`
	Version        uint64      `json:"version"`
	ContentType    string      `json:"content_type,omitempty"`
	ExpiresAt      time.Time   `json:"expires_at,omitzero"`
}

// decodeForm reads the JSON form of a key; null is nil.
func decodeForm(data []byte) (*kv.Item, error) {
	var f *form
	if err := json.Unmarshal(data, &f); err != nil || f == nil {
		return nil, err
	}
	item := f.item()
	return &item, nil
}

// named reports whether f has a key.
func (f *form) named() bool { return f.Key != nil || f.KeyBase64 != nil }

func (f *form) item() kv.Item {
	item := kv.Item{
		Key: string(f.KeyBase64), Value: f.ValueBase64, CreateRevision: f.CreateRevision, ModRevision: f.ModRevision,
		Version: f.Version, ContentType: f.ContentType, ExpiresAt: f.ExpiresAt,
	}
	if f.Key != nil {
		item.Key = *f.Key
	}
	if f.Value != nil {
		item.Value = []byte(*f.Value)
	}
	return item
}

// formOf is the JSON form of item.
func formOf(item kv.Item) form {
	f := form{
		CreateRevision: item.CreateRevision, ModRevision: item.ModRevision, Version: item.Version,
		ContentType: item.ContentType, ExpiresAt: item.ExpiresAt,
	}
	f.Key, f.KeyBase64 = textOrBytes(item.Key)
	f.Value, f.ValueBase64 = textOrBytes(string(item.Value))
	return f
}

// textOrBytes returns s for a JSON member of text, or, if it is not UTF-8, for one of
// base64.
func textOrBytes(s string) (*string, []byte) {
	if utf8.ValidString(s) {
		return &s, nil
	}
	return nil, []byte(s)
}

// EncodeItem returns the JSON form of a key, as the HTTP API writes it: key and value
// as text, or in base64 where they are not UTF-8.
func EncodeItem(item kv.Item) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(formOf(item)); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
