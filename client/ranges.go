package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/settkv/sett/kv"
)

const rangePath = "/v1/kv"

// ListOptions say what a page holds and where it begins.
type ListOptions struct {
	kv.ReadOptions
	// Limit is how many items and common prefixes a page has at most, 1 to
	// kv.MaxRangeLimit; 0 is the server's default, 1000. A page also ends at 8 MiB.
	Limit int
	// After is Page.Next of the page before, from a call with the same range and options.
	After string
	// Reverse lists from the last key to the first.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
	// Delimiter, if not empty, rolls keys up as object stores do: keys that have it behind
	// the prefix of the range appear once, as the common prefix that ends with it.
	Delimiter string
}

// Page is a part of a listing. All pages of a listing are of one revision.
type Page struct {
	// Revision is the one that all pages are of.
	Revision kv.Revision
	Items    []kv.Item
	// CommonPrefixes are the keys that were rolled up.
	CommonPrefixes []string
	// More says that Next leads to another page.
	More bool
	Next string
}

// List reads a page of the keys in r.
func (c *Client) List(ctx context.Context, r kv.Range, o ListOptions) (Page, error) {
	req := rangeRequest(http.MethodGet, r)
	req.forwarded = o.Consistency == kv.Leader
	setReadOptions(req.query, o.ReadOptions)
	if o.Limit != 0 {
		req.query.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.After != "" {
		req.query.Set("after", o.After)
	}
	if o.Delimiter != "" {
		req.query.Set("delimiter", o.Delimiter)
	}
	setFlag(req.query, "reverse", o.Reverse)
	setFlag(req.query, "keys_only", o.KeysOnly)
	var res struct {
		Revision             kv.Revision `json:"revision"`
		Items                []form      `json:"items"`
		CommonPrefixes       []string    `json:"common_prefixes"`
		CommonPrefixesBase64 [][]byte    `json:"common_prefixes_base64"`
		More                 bool        `json:"more"`
		Next                 string      `json:"next"`
	}
	if err := c.call(ctx, req, &res); err != nil {
		return Page{}, err
	}
	p := Page{Revision: res.Revision, CommonPrefixes: res.CommonPrefixes, More: res.More, Next: res.Next}
	p.Items = make([]kv.Item, len(res.Items))
	for i := range res.Items {
		p.Items[i] = res.Items[i].item()
	}
	for _, b := range res.CommonPrefixesBase64 {
		p.CommonPrefixes = append(p.CommonPrefixes, string(b))
	}
	if p.More && p.Next == "" {
		return p, kv.Errorf(kv.CodeInternal, "the node said that there is more and not where: is it a Sett node of another version?")
	}
	return p, nil
}

// Count returns how many keys r holds, and the revision at which it does.
func (c *Client) Count(ctx context.Context, r kv.Range, o kv.ReadOptions) (uint64, kv.Revision, error) {
	req := rangeRequest(http.MethodGet, r)
	req.forwarded = o.Consistency == kv.Leader
	setReadOptions(req.query, o)
	req.query.Set("count_only", "1")
	var res struct {
		Revision kv.Revision `json:"revision"`
		Count    uint64      `json:"count"`
	}
	err := c.call(ctx, req, &res)
	return res.Count, res.Revision, err
}

// DeleteRangeOptions say how a range is deleted.
type DeleteRangeOptions struct {
	// Paged deletes in several transactions: a range of any size, and others see it half
	// done. Otherwise it is one transaction, and kv.ErrTooLarge beyond
	// kv.MaxTouchedKeys keys.
	Paged bool
	// IdempotencyKey is as in WriteOptions.
	IdempotencyKey string
}

// DeleteRangeResult is what became of a range.
type DeleteRangeResult struct {
	Deleted  uint64
	Revision kv.Revision
	// Replayed is as in WriteResult.
	Replayed bool
}

// DeleteRange deletes all keys in r. The zero Range is every key there is.
func (c *Client) DeleteRange(ctx context.Context, r kv.Range, o DeleteRangeOptions) (DeleteRangeResult, error) {
	req := rangeRequest(http.MethodDelete, r)
	req.write, req.forwarded = true, true
	if r == (kv.Range{}) {
		req.query.Set("all", "true")
	}
	if o.Paged {
		req.query.Set("atomic", "0")
	} else if r == (kv.Range{}) {
		req.query.Set("atomic", "1") // all of it goes in pages unless told otherwise
	}
	req.setOnce(o.IdempotencyKey)
	a, err := c.do(ctx, req)
	if err != nil {
		return DeleteRangeResult{Revision: revisionOf(a), Replayed: replayed(a)}, err
	}
	var res struct {
		Deleted  uint64      `json:"deleted"`
		Revision kv.Revision `json:"revision"`
	}
	if err := json.Unmarshal(a.body, &res); err != nil {
		return DeleteRangeResult{}, unreadable(a, err)
	}
	return DeleteRangeResult{Deleted: res.Deleted, Revision: res.Revision, Replayed: replayed(a)}, nil
}

func rangeRequest(method string, r kv.Range) request {
	req := request{method: method, path: rangePath, query: url.Values{}, header: http.Header{}}
	setRange(req.query, r)
	return req
}

// setRange names r: by its prefix if it is the range of one, since that is what keys are
// rolled up behind.
func setRange(q url.Values, r kv.Range) {
	if r == (kv.Range{}) {
		return
	}
	if prefix, ok := r.Prefix(); ok {
		q.Set("prefix", prefix)
		return
	}
	if r.Start != "" {
		q.Set("start", r.Start)
	}
	if r.End != "" {
		q.Set("end", r.End)
	}
}

// KeyRange returns the range that holds key and nothing else.
func KeyRange(key string) kv.Range { return kv.Range{Start: key, End: key + "\x00"} }

// onlyKey returns the key that r is the range of.
func onlyKey(r kv.Range) (string, bool) {
	key, ok := strings.CutSuffix(r.End, "\x00")
	return r.Start, ok && key == r.Start && key != ""
}

func setFlag(q url.Values, name string, on bool) {
	if on {
		q.Set(name, "1")
	}
}
