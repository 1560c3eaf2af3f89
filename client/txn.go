package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/settkv/sett/kv"
)

// Txn does t: atomic, linearizable. t.Once.Key is the idempotency key, a random one if
// it is empty; t.Once.Request does not count, since the cluster makes it of the request.
// Results have no FailedRevision. One failing operation fails the whole, changing
// nothing.
func (c *Client) Txn(ctx context.Context, t kv.Txn) (kv.TxnResult, error) {
	body, err := encodeTxn(t)
	if err != nil {
		return kv.TxnResult{}, err
	}
	a, err := c.txn(ctx, body, t.Once.Key)
	if err != nil {
		return kv.TxnResult{Revision: revisionOf(a), Replayed: replayed(a)}, err
	}
	res, err := decodeTxnResult(a.body, t)
	if err != nil {
		return res, unreadable(a, err)
	}
	res.Replayed = replayed(a)
	return res, nil
}

// TxnJSON does a transaction that is given as the HTTP API takes it, and returns the
// answer as the API gives it.
func (c *Client) TxnJSON(ctx context.Context, body []byte, idempotencyKey string) ([]byte, error) {
	a, err := c.txn(ctx, body, idempotencyKey)
	if err != nil {
		return nil, err
	}
	return a.body, nil
}

func (c *Client) txn(ctx context.Context, body []byte, key string) (*answer, error) {
	r := request{
		method: http.MethodPost, path: "/v1/txn", body: body,
		header: http.Header{"Content-Type": {"application/json"}}, write: true, forwarded: true,
	}
	r.setOnce(key)
	return c.do(ctx, r)
}

// txnForm is the JSON of a transaction.
type txnForm struct {
	If   []condForm `json:"if,omitempty"`
	Then []opForm   `json:"then,omitempty"`
	Else []opForm   `json:"else,omitempty"`
}

// condForm is the JSON of a condition.
type condForm struct {
	Key            *string            `json:"key,omitempty"`
	KeyBase64      []byte             `json:"key_base64,omitempty"`
	ModRevision    map[string]uint64  `json:"mod_revision,omitempty"`
	CreateRevision map[string]uint64  `json:"create_revision,omitempty"`
	Version        map[string]uint64  `json:"version,omitempty"`
	Value          map[string]*string `json:"value,omitempty"`
	ValueBase64    map[string][]byte  `json:"value_base64,omitempty"`
	Exists         *bool              `json:"exists,omitempty"`
}

// opForm is the JSON of an operation: one of its members is set.
type opForm struct {
	Put    *opBody `json:"put,omitempty"`
	Get    *opBody `json:"get,omitempty"`
	Range  *opBody `json:"range,omitempty"`
	Delete *opBody `json:"delete,omitempty"`
	Incr   *opBody `json:"incr,omitempty"`
	Append *opBody `json:"append,omitempty"`
	Touch  *opBody `json:"touch,omitempty"`
}

type opBody struct {
	Key          *string `json:"key,omitempty"`
	KeyBase64    []byte  `json:"key_base64,omitempty"`
	Prefix       *string `json:"prefix,omitempty"`
	PrefixBase64 []byte  `json:"prefix_base64,omitempty"`
	Start        *string `json:"start,omitempty"`
	StartBase64  []byte  `json:"start_base64,omitempty"`
	End          *string `json:"end,omitempty"`
	EndBase64    []byte  `json:"end_base64,omitempty"`
	Value        *string `json:"value,omitempty"`
	ValueBase64  []byte  `json:"value_base64,omitempty"`
	ContentType  string  `json:"content_type,omitempty"`
	TTL          string  `json:"ttl,omitempty"`
	By           *int64  `json:"by,omitempty"`
	Limit        int     `json:"limit,omitempty"`
	Reverse      bool    `json:"reverse,omitempty"`
	KeysOnly     bool    `json:"keys_only,omitempty"`
}

func encodeTxn(t kv.Txn) ([]byte, error) {
	var f txnForm
	var err error
	f.If = make([]condForm, len(t.If))
	for i, c := range t.If {
		if f.If[i], err = encodeCond(c); err != nil {
			return nil, kv.NotApplied(kv.CodeInvalidArgument, "condition %d: %v", i+1, err)
		}
	}
	if f.Then, err = encodeOps(t.Then); err != nil {
		return nil, err
	}
	if f.Else, err = encodeOps(t.Else); err != nil {
		return nil, err
	}
	data, err := json.Marshal(f)
	if err != nil {
		return nil, kv.NotApplied(kv.CodeInvalidArgument, "encode the transaction: %v", err)
	}
	return data, nil
}

var cmpNames = [...]string{
	kv.CmpEqual: "eq", kv.CmpNotEqual: "ne", kv.CmpLess: "lt", kv.CmpGreater: "gt", kv.CmpLessEqual: "le", kv.CmpGreaterEqual: "ge",
}

func encodeCond(c kv.Cond) (condForm, error) {
	if c.Op == 0 || int(c.Op) >= len(cmpNames) {
		return condForm{}, fmt.Errorf("no such comparison: %d", c.Op)
	}
	var f condForm
	f.Key, f.KeyBase64 = textOrBytes(c.Key)
	number := map[string]uint64{cmpNames[c.Op]: c.Number}
	switch c.Target {
	case kv.CondModRevision:
		f.ModRevision = number
	case kv.CondCreateRevision:
		f.CreateRevision = number
	case kv.CondVersion:
		f.Version = number
	case kv.CondExists:
		exists := c.Number != 0
		if c.Op != kv.CmpEqual || c.Number > 1 {
			return f, fmt.Errorf("existence is compared with CmpEqual, to 1 or 0")
		}
		f.Exists = &exists
	case kv.CondValue:
		if c.Op != kv.CmpEqual {
			return f, fmt.Errorf("a value is compared with CmpEqual")
		}
		if text, raw := textOrBytes(string(c.Value)); text != nil {
			f.Value = map[string]*string{"eq": text}
		} else {
			f.ValueBase64 = map[string][]byte{"eq": raw}
		}
	default:
		return f, fmt.Errorf("no such target: %d", c.Target)
	}
	return f, nil
}

func encodeOps(ops []kv.Op) ([]opForm, error) {
	list := make([]opForm, len(ops))
	for i := range ops {
		var err error
		if list[i], err = encodeOp(&ops[i]); err != nil {
			return nil, kv.NotApplied(kv.CodeInvalidArgument, "operation %d: %v", i+1, err)
		}
	}
	return list, nil
}

func encodeOp(op *kv.Op) (opForm, error) {
	if op.Previous {
		return opForm{}, fmt.Errorf("previous values are not part of a transaction's answer: get the key in an operation before")
	}
	b := &opBody{}
	if op.Kind == kv.OpRange || op.Kind == kv.OpDeleteRange {
		b.setRange(op.Range)
	} else {
		b.Key, b.KeyBase64 = textOrBytes(op.Key)
	}
	switch op.Kind {
	case kv.OpPut:
		b.Value, b.ValueBase64 = textOrBytes(string(op.Value))
		b.ContentType = op.ContentType
		if op.TTL != 0 {
			b.TTL = op.TTL.String()
		}
		return opForm{Put: b}, nil
	case kv.OpAppend:
		b.Value, b.ValueBase64 = textOrBytes(string(op.Value))
		return opForm{Append: b}, nil
	case kv.OpTouch:
		b.TTL = op.TTL.String()
		return opForm{Touch: b}, nil
	case kv.OpIncr:
		b.By = &op.By
		return opForm{Incr: b}, nil
	case kv.OpGet:
		return opForm{Get: b}, nil
	case kv.OpDelete:
		return opForm{Delete: b}, nil
	case kv.OpRange:
		b.Limit, b.Reverse, b.KeysOnly = op.Limit, op.Reverse, op.KeysOnly
		return opForm{Range: b}, nil
	case kv.OpDeleteRange:
		if op.Limit != 0 {
			return opForm{}, fmt.Errorf("a range is deleted whole: Limit is 0")
		}
		return opForm{Delete: b}, nil
	}
	return opForm{}, fmt.Errorf("no such kind of operation: %d", op.Kind)
}

func (b *opBody) setRange(r kv.Range) {
	if prefix, ok := r.Prefix(); ok {
		b.Prefix, b.PrefixBase64 = textOrBytes(prefix)
		return
	}
	if r.Start != "" {
		b.Start, b.StartBase64 = textOrBytes(r.Start)
	}
	if r.End != "" {
		b.End, b.EndBase64 = textOrBytes(r.End)
	}
}

// decodeTxnResult reads the answer to t.
func decodeTxnResult(data []byte, t kv.Txn) (kv.TxnResult, error) {
	var f struct {
		Succeeded bool                         `json:"succeeded"`
		Revision  kv.Revision                  `json:"revision"`
		Results   []map[string]json.RawMessage `json:"results"`
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return kv.TxnResult{}, err
	}
	ops := t.Then
	if !f.Succeeded {
		ops = t.Else
	}
	res := kv.TxnResult{Succeeded: f.Succeeded, Revision: f.Revision}
	if len(f.Results) != len(ops) {
		return res, fmt.Errorf("%d results of %d operations", len(f.Results), len(ops))
	}
	res.Ops = make([]kv.OpResult, len(ops))
	for i, op := range ops {
		raw, ok := f.Results[i][op.Kind.String()]
		if !ok {
			return res, fmt.Errorf("result %d is not of %s", i+1, op.Kind)
		}
		if err := decodeOpResult(raw, op.Kind, &res.Ops[i]); err != nil {
			return res, fmt.Errorf("result %d: %w", i+1, err)
		}
	}
	return res, nil
}

func decodeOpResult(raw []byte, kind kv.OpKind, to *kv.OpResult) (err error) {
	to.Kind = kind
	if kind == kv.OpGet {
		to.Item, err = decodeForm(raw)
		return err
	}
	var f struct {
		Created     bool        `json:"created"`
		ModRevision kv.Revision `json:"mod_revision"`
		Deleted     uint64      `json:"deleted"`
		Value       int64       `json:"value"`
		Items       []form      `json:"items"`
		More        bool        `json:"more"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	to.Created, to.ModRevision, to.Deleted, to.Number, to.More = f.Created, f.ModRevision, f.Deleted, f.Value, f.More
	for i := range f.Items {
		to.Items = append(to.Items, f.Items[i].item())
	}
	return nil
}
