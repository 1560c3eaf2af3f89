package consensus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

const (
	// MaxEntryBytes bounds the payload of a Raft entry. It is a constant of the
	// format, equal on every node.
	MaxEntryBytes = 256 << 10
	// MaxCommandBytes bounds one command; a bigger one is refused.
	MaxCommandBytes = 64 << 20

	// What the Envelope may add to an entry's commands.
	batchOverheadBytes = 4 << 10
	perCommandBytes    = 16

	maxBatchBytes    = MaxEntryBytes - batchOverheadBytes
	maxBatchCommands = 2048

	// proposeWindow is how many entries of coalesced commands are in flight at once:
	// the next is written to the leader's disk while the followers write the last.
	proposeWindow = 2
	// lightFlight and fullBatch decide whether the window's second place is used: with
	// less than lightFlight commands in flight a new one need not wait for them; with
	// more, what comes gathers until they are done or fullBatch of them wait. Every
	// entry costs each server a round of its own, so a busy cluster is faster with few
	// big ones.
	lightFlight = 4
	fullBatch   = 128
	// chunkWindow is how many chunk entries of one big command are in flight.
	chunkWindow = 4
	// bigCommands is how many commands in chunks are proposed at a time.
	bigCommands = 2
)

// Timing tells where the time of a proposal went, and where it ended up.
type Timing struct {
	// Queue is from Propose to the start of its entry's proposal.
	Queue time.Duration
	// Replicate is from there to the state machine's result.
	Replicate time.Duration
	// Index is the log index of the entry that carried, or committed, the command.
	Index uint64
}

// The states of a proposal: it leaves stateQueued exactly once.
const (
	stateQueued int32 = iota
	stateSealed
	stateAbandoned
)

type proposal struct {
	cmd    []byte
	queued time.Time
	state  atomic.Int32
	done   chan outcome // buffered: whoever finishes it never waits
}

type outcome struct {
	result any
	timing Timing
	err    error
}

// queue holds the commands that wait for an entry.
type queue struct {
	mu        sync.Mutex
	waiting   []*proposal
	flying    int           // commands in entries that are in flight
	wake      chan struct{} // one token per sealer at most
	inflight  atomic.Int64  // bytes between Propose and the end of their entry
	limit     int64
	bigTokens chan struct{}
}

func (q *queue) init(limit int64) {
	q.limit = limit
	q.wake = make(chan struct{}, proposeWindow)
	q.bigTokens = make(chan struct{}, bigCommands)
}

// admit reserves n bytes. One command is always admitted when nothing is in flight.
func (q *queue) admit(n int64) bool {
	if q.inflight.Add(n) <= q.limit {
		return true
	}
	if q.inflight.Add(-n) > 0 {
		return false
	}
	q.inflight.Add(n)
	return true
}

func (q *queue) push(p *proposal) {
	q.mu.Lock()
	q.waiting = append(q.waiting, p)
	q.mu.Unlock()
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes the commands of the next entry from the queue and claims them. more
// says that others wait.
func (q *queue) take() (batch []*proposal, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeLocked()
}

// fly is take for an entry that will be in flight until land; it takes nothing while
// it is better to wait. Whoever lands must call it again: nobody else does.
func (q *queue) fly() (batch []*proposal, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.flying >= lightFlight && len(q.waiting) < fullBatch {
		return nil, false
	}
	batch, more = q.takeLocked()
	q.flying += len(batch)
	return batch, more
}

// land ends the flight of n commands.
func (q *queue) land(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flying -= n
}

func (q *queue) takeLocked() (batch []*proposal, more bool) {
	size, n := 0, 0
	for _, p := range q.waiting {
		cost := len(p.cmd) + perCommandBytes
		if len(batch) > 0 && (size+cost > maxBatchBytes || len(batch) == maxBatchCommands) {
			break
		}
		n++
		if p.state.CompareAndSwap(stateQueued, stateSealed) {
			batch = append(batch, p)
			size += cost
		}
	}
	rest := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[rest:])
	q.waiting = q.waiting[:rest]
	return batch, rest > 0
}

// Propose replicates one command and returns what the state machine answered.
// Commands of concurrent callers share entries; one too big for an entry travels in
// chunks. On a node that leads a term that is not ready yet it waits for that.
//
// The error, a *kv.Error, says exactly what became of the command: not applied, or
// unknown. A command that is still waiting here when ctx ends was not applied; one
// that was handed to raft by then is unknown. cmd is kept until the command's fate
// is decided, which can be after Propose returned; it must not be modified.
func (c *Consensus) Propose(ctx context.Context, cmd []byte) (result any, timing Timing, err error) {
	if len(cmd) > MaxCommandBytes {
		return nil, Timing{}, kv.NotApplied(kv.CodeTooLarge, "the request makes a command of %d bytes; the limit is %d", len(cmd), MaxCommandBytes)
	}
	start := time.Now()
	if _, err := c.waitReady(ctx); err != nil {
		c.metrics.proposed(err)
		return nil, Timing{Queue: time.Since(start)}, err
	}
	if !c.queue.admit(int64(len(cmd))) {
		err := kv.NotApplied(kv.CodeOverloaded, "this node has as many writes in flight as max-inflight-bytes allows; try again")
		err.RetryAfter = retryAfter
		c.metrics.proposed(err)
		return nil, Timing{}, err
	}
	var o outcome
	if len(cmd)+perCommandBytes > maxBatchBytes {
		o = c.proposeChunks(ctx, cmd, start)
		c.queue.inflight.Add(-int64(len(cmd)))
	} else {
		o = c.proposeShared(ctx, cmd, start)
	}
	c.metrics.proposed(o.err)
	if o.err == nil {
		c.metrics.proposeSeconds.Observe(time.Since(start).Seconds())
	}
	return o.result, o.timing, o.err
}

// proposeShared lets a command travel with others.
func (c *Consensus) proposeShared(ctx context.Context, cmd []byte, start time.Time) outcome {
	p := &proposal{cmd: cmd, queued: start, done: make(chan outcome, 1)}
	c.queue.push(p)
	select {
	case o := <-p.done:
		return o
	case <-ctx.Done():
	case <-c.stopped:
	}
	if p.state.CompareAndSwap(stateQueued, stateAbandoned) {
		c.queue.inflight.Add(-int64(len(cmd)))
		return outcome{
			timing: Timing{Queue: time.Since(start)},
			err:    noLeader(context.Cause(ctx), "the write's time was up before the leader could propose it"),
		}
	}
	select {
	case o := <-p.done:
		return o
	default:
		return outcome{err: kv.Unknown(context.Cause(ctx), "the write was proposed, but not confirmed in time; read before trying again, or repeat it with its idempotency key")}
	}
}

// runSealer makes one entry at a time of what waits, proposes it, and hands out the
// results. There are proposeWindow of them.
func (c *Consensus) runSealer() {
	for {
		select {
		case <-c.queue.wake:
		case <-c.ctx.Done():
			c.failQueued()
			return
		}
		for {
			batch, more := c.queue.fly()
			if len(batch) == 0 {
				break
			}
			if more {
				c.queue.signal()
			}
			c.proposeBatch(batch)
			c.queue.land(len(batch))
		}
	}
}

// failQueued answers what can't be proposed any more.
func (c *Consensus) failQueued() {
	for {
		batch, more := c.queue.take()
		c.finish(batch, func(int) outcome { return outcome{err: noLeader(errStopping, "this node is shutting down")} })
		if !more {
			return
		}
	}
}

// finish hands out the results of a batch and gives its bytes back.
func (c *Consensus) finish(batch []*proposal, of func(i int) outcome) {
	for i, p := range batch {
		c.queue.inflight.Add(-int64(len(p.cmd)))
		p.done <- of(i)
	}
}

func (c *Consensus) proposeBatch(batch []*proposal) {
	if _, ready := c.Ready(); !ready {
		// Leadership ended while they waited: nothing of them was proposed.
		c.finish(batch, func(int) outcome {
			return outcome{err: noLeader(nil, "leadership was lost before the write was proposed; try again")}
		})
		return
	}
	cmds := make([][]byte, len(batch))
	for i, p := range batch {
		cmds[i] = p.cmd
	}
	sealed := time.Now()
	entry := c.cfg.Envelope.Batch(cmds)
	c.metrics.batchCommands.Observe(float64(len(batch)))
	c.metrics.batchBytes.Observe(float64(len(entry)))
	results, index, err := c.apply(c.ctx, entry, len(batch))
	took := time.Since(sealed)
	c.finish(batch, func(i int) outcome {
		o := outcome{err: err, timing: Timing{Queue: sealed.Sub(batch[i].queued), Replicate: took, Index: index}}
		if err == nil {
			o.result = results[i]
		}
		return o
	})
}

// apply proposes one entry and waits for its results, of which there must be want.
// The error is a *kv.Error of the exact outcome. It waits no longer than
// maxEntryWait, because a future may never resolve; giving up means "unknown".
func (c *Consensus) apply(ctx context.Context, entry []byte, want int) ([]any, uint64, error) {
	if len(entry) > MaxEntryBytes {
		return nil, 0, kv.NotApplied(kv.CodeInternal, "an entry of %d bytes was built; the limit is %d", len(entry), MaxEntryBytes)
	}
	ctx, cancel := context.WithTimeout(ctx, maxEntryWait)
	defer cancel()
	future := c.raft.Apply(entry, c.enqueueTimeout())
	if err := c.waitFuture(ctx, future); err != nil {
		return nil, 0, proposalError(err)
	}
	results, ok := future.Response().([]any)
	if !ok || len(results) != want {
		return nil, 0, kv.Unknown(fmt.Errorf("the state machine answered entry %d with %T", future.Index(), future.Response()),
			"the write was committed, but its result is not known")
	}
	return results, future.Index(), nil
}

// maxEntryWait is when an entry's future is given up. Every caller has a shorter
// deadline of its own; this one frees the place in the window.
const maxEntryWait = 30 * time.Second

// proposeChunks proposes a command in parts. The parts before the last change
// nothing that anybody can see: only the fate of the last one counts.
func (c *Consensus) proposeChunks(ctx context.Context, cmd []byte, start time.Time) outcome {
	select {
	case c.queue.bigTokens <- struct{}{}:
		defer func() { <-c.queue.bigTokens }()
	case <-ctx.Done():
		return outcome{err: noLeader(context.Cause(ctx), "the write's time was up before the leader could propose it")}
	case <-c.ctx.Done():
		return outcome{err: noLeader(errStopping, "this node is shutting down")}
	}
	timing := Timing{Queue: time.Since(start)}
	sealed := time.Now()
	fail := func(err error) outcome {
		timing.Replicate = time.Since(sealed)
		return outcome{timing: timing, err: err}
	}
	var idBytes [8]byte
	_, _ = rand.Read(idBytes[:]) // never fails
	id := binary.LittleEndian.Uint64(idBytes[:])

	window := make([]raft.ApplyFuture, 0, chunkWindow)
	seq := 0
	for ; len(cmd) > maxBatchBytes; seq++ {
		part := c.cfg.Envelope.Chunk(id, seq, false, cmd[:maxBatchBytes])
		cmd = cmd[maxBatchBytes:]
		if len(window) == chunkWindow {
			if err := c.waitChunk(ctx, window[0]); err != nil {
				return fail(err)
			}
			window = append(window[:0], window[1:]...)
		}
		window = append(window, c.raft.Apply(part, c.enqueueTimeout()))
	}
	for _, f := range window {
		if err := c.waitChunk(ctx, f); err != nil {
			return fail(err)
		}
	}
	results, index, err := c.apply(ctx, c.cfg.Envelope.Chunk(id, seq, true, cmd), 1)
	if err != nil {
		return fail(err)
	}
	timing.Replicate, timing.Index = time.Since(sealed), index
	return outcome{result: results[0], timing: timing}
}

// waitChunk waits for a part that does not commit. Whatever went wrong with it, the
// committing part was not proposed, so nothing was applied.
func (c *Consensus) waitChunk(ctx context.Context, f raft.ApplyFuture) error {
	ctx, cancel := context.WithTimeout(ctx, maxEntryWait)
	defer cancel()
	if err := c.waitFuture(ctx, f); err != nil {
		return noLeader(err, "the leader could not take the whole write; nothing of it was applied, try again")
	}
	return nil
}
