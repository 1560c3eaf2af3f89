package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/settkv/sett/kv"
)

// What is too much for one transaction, a bulk load or a delete without atomicity, is
// done in batches, each of which is one. The node that was asked makes the batches and
// gives them to the leader one after the other. Each has an idempotency key, so that one
// whose answer is lost can be given again, to another leader too (invariant 25).

// headerBatch goes between nodes only: "KEY LINES APPLIED", the batch's idempotency key in
// base64url and what of a bulk load came before it. A forwarded request with it is one
// batch.
const headerBatch = "Sett-Batch"

// deletePageKeys is how many keys a delete without atomicity deletes at once.
const deletePageKeys = 10_000

// batchID names a batch for the leader.
type batchID struct {
	key     string
	lines   uint64 // of the load, before the batch
	applied uint64 // of these, that changed something
}

// newBatchKey is a key that no client can send: no header has a NUL.
func newBatchKey() string { return "\x00" + rand.Text() }

// pageKey is the idempotency key of a page of a request that has one.
func pageKey(key string, page int) string {
	if page == 0 {
		return key
	}
	sum := digest([]byte("page"), []byte(key))
	return "\x00" + base64.RawURLEncoding.EncodeToString(sum[:]) + "." + strconv.Itoa(page)
}

func (b batchID) header() http.Header {
	v := base64.RawURLEncoding.EncodeToString([]byte(b.key)) + " " + strconv.FormatUint(b.lines, 10) + " " + strconv.FormatUint(b.applied, 10)
	return http.Header{headerBatch: {v}}
}

// forwardedBatch reads headerBatch of a forwarded request.
func (x *exchange) forwardedBatch() (b batchID, err error) {
	bad := kv.NotApplied(kv.CodeInvalidArgument, "the node that forwarded this does not say which batch it is; do all nodes run the same version?")
	parts := strings.Split(x.r.Header.Get(headerBatch), " ")
	if len(parts) != 3 {
		return b, bad
	}
	key, keyErr := base64.RawURLEncoding.DecodeString(parts[0])
	lines, linesErr := strconv.ParseUint(parts[1], 10, 64)
	applied, appliedErr := strconv.ParseUint(parts[2], 10, 64)
	if keyErr != nil || linesErr != nil || appliedErr != nil || len(key) == 0 || len(key) > kv.MaxOnceKeyBytes {
		return b, bad
	}
	return batchID{key: string(key), lines: lines, applied: applied}, nil
}

// batchContext bounds one batch of the request by the request's timeout.
func (x *exchange) batchContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(x.r.Context(), x.timeout)
}

// settleBatch is call.settle for one whose key the client doesn't know.
func (c *leaderCall) settleBatch(err error) error {
	if err == nil || !c.unsure || decidedCode(kv.AsError(err).Code) {
		return err
	}
	return kv.Unknown(err, "the last batch was given to the leader and its answer was lost")
}

// pageResult is what became of one page of a delete.
type pageResult struct {
	Deleted  uint64      `json:"deleted"`
	Revision kv.Revision `json:"revision"`
	More     bool        `json:"more"`
	Replayed bool        `json:"replayed"`
}

// deletePages deletes a range in pages, each of which is a transaction.
func (s *Server) deletePages(x *exchange, r kv.Range) error {
	if x.forwardedBy != "" {
		return s.deleteForwardedPage(x, r)
	}
	var total uint64
	replayed := x.onceKey != ""
	for page := 0; ; page++ {
		key := newBatchKey()
		if x.onceKey != "" {
			key = pageKey(x.onceKey, page)
		}
		res, err := s.deletePage(x, r, key)
		switch {
		case err != nil && page > 0:
			return kv.Unknown(err, "%d keys were deleted, and then: %s; repeat the request to delete the rest", total, kv.AsError(err).Msg)
		case err != nil:
			return err
		}
		total += res.Deleted
		replayed = replayed && res.Replayed
		if !res.More {
			x.setRevision(res.Revision)
			if replayed {
				x.Header().Set(headerReplayed, "true")
			}
			return x.writeDeleted(total, res.Revision)
		}
		if s.isStopping() {
			return kv.Unknown(nil, "%d keys were deleted, and then this node began to stop; repeat the request at another one to delete the rest", total)
		}
	}
}

// deletePage has the leader do one page.
func (s *Server) deletePage(x *exchange, r kv.Range, key string) (res pageResult, err error) {
	ctx, cancel := x.batchContext()
	defer cancel()
	call := leaderCall{
		repeat: true, patient: true,
		header: batchID{key: key}.header(),
		local:  func(ctx context.Context) error { return x.deletePageHere(ctx, r, key, &res) },
		answer: func(body []byte, _ http.Header) error { return readBatchAnswer(body, &res) },
	}
	_, err = x.onLeader(ctx, &call)
	return res, call.settleBatch(err)
}

func (x *exchange) deletePageHere(ctx context.Context, r kv.Range, key string, res *pageResult) error {
	t := kv.Txn{
		Then: []kv.Op{{Kind: kv.OpDeleteRange, Range: r, Limit: deletePageKeys}},
		Once: kv.Once{Key: key, Request: x.requestHash(nil)},
	}
	result, err := x.s.cfg.Store.Txn(ctx, t, &x.timing)
	if err != nil {
		return err
	}
	if len(result.Ops) != 1 {
		return errBadResult()
	}
	x.setRevision(result.Revision)
	op := &result.Ops[0]
	*res = pageResult{Deleted: op.Deleted, Revision: result.Revision, More: op.More, Replayed: result.Replayed}
	return nil
}

// deleteForwardedPage does one page for the node that was asked.
func (s *Server) deleteForwardedPage(x *exchange, r kv.Range) error {
	id, err := x.forwardedBatch()
	if err != nil {
		return err
	}
	ctx, cancel := x.batchContext()
	defer cancel()
	var res pageResult
	if _, err := x.onLeader(ctx, &leaderCall{local: func(ctx context.Context) error {
		return x.deletePageHere(ctx, r, id.key, &res)
	}}); err != nil {
		return err
	}
	return x.writeJSON(http.StatusOK, &res)
}

// readBatchAnswer reads what another node says that it has done. An answer that can't
// be read leaves open what was.
func readBatchAnswer(body []byte, to any) error {
	if err := json.Unmarshal(body, to); err != nil {
		return kv.Unknown(err, "the leader's answer can't be read")
	}
	return nil
}
