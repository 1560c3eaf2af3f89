package fsm

import (
	"context"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// crowd is how many watchers are served without any pacing.
	crowd = 16
	// pacePeriod is how often the pace of a crowd is adjusted, and shortOfCPU the time that
	// goroutines wait for a processor from which on there is not enough of it.
	pacePeriod = 100 * time.Millisecond
	shortOfCPU = 200 * time.Microsecond
	// The bounds of the pace, in bytes of events a second.
	leastPace = 4 << 20
	mostPace  = 256 << 20
	// batchCost is what a batch costs beside its bytes, and diskCost an event that had to be
	// read again.
	batchCost = 4 << 10
	diskCost  = 8 << 10
)

// pacer makes a crowd of watchers take what processor time others leave. A thousand
// watchers of a busy prefix want a thousand times of what is written; without a pace
// they would get it at the expense of the writes. They stand in line: the first lets the
// cost of its last batch pass at the pace of the moment. Up to crowd watchers are not
// paced.
type pacer struct {
	first chan struct{} // holds a token while somebody is at the head of the line

	mu       sync.Mutex
	pace     float64 // bytes a second
	adjusted time.Time
	sample   []metrics.Sample
	counts   []uint64
}

func newPacer() *pacer {
	return &pacer{first: make(chan struct{}, 1), pace: mostPace, sample: []metrics.Sample{{Name: "/sched/latencies:seconds"}}}
}

// wait lets cost pass, which was spent before. It returns false if ctx, progress or stop
// ended it first: the cost is then still owed.
func (p *pacer) wait(ctx context.Context, cost int, progress <-chan time.Time, stop <-chan struct{}) bool {
	select {
	case p.first <- struct{}{}:
		defer func() { <-p.first }()
	case <-progress:
		return false
	case <-ctx.Done():
		return false
	case <-stop:
		return false
	}
	timer := time.NewTimer(time.Duration(float64(cost) / p.adjust() * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-progress:
	case <-ctx.Done():
	case <-stop:
	}
	return false
}

// adjust returns the pace. It slows the crowd down while goroutines have to wait for a
// processor, and lets it go faster while they do not: additive increase, multiplicative
// decrease.
func (p *pacer) adjust() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.adjusted) < pacePeriod {
		return p.pace
	}
	p.adjusted = time.Now()
	if p.waitLocked() > shortOfCPU.Seconds() {
		p.pace = max(leastPace, p.pace/4)
	} else {
		p.pace = min(mostPace, p.pace*17/16+leastPace/16)
	}
	return p.pace
}

// waitLocked returns how long three of four goroutines had to wait for a processor, at
// most, since the last call; 0 if that can't be told.
func (p *pacer) waitLocked() float64 {
	metrics.Read(p.sample)
	if p.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0
	}
	h := p.sample[0].Value.Float64Histogram()
	if len(p.counts) != len(h.Counts) {
		p.counts = append([]uint64(nil), h.Counts...)
		return 0
	}
	var total uint64
	for i, n := range h.Counts {
		total += n - p.counts[i]
	}
	var seen uint64
	wait := 0.0
	for i, n := range h.Counts {
		seen += n - p.counts[i]
		p.counts[i] = n
		if wait == 0 && seen*4 >= total*3 && total > 0 {
			wait = h.Buckets[i]
		}
	}
	return wait
}

// batchPrice is what a batch costs a crowded hub.
func batchPrice(events []*kv.Event, fromDisk bool) int {
	n := batchCost
	for _, e := range events {
		n += eventBytes(e)
	}
	if fromDisk {
		n += diskCost * len(events)
	}
	return n
}
