package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// bootstrapTimeout bounds Bootstrap, which writes to the local disk only.
const bootstrapTimeout = 10 * time.Second

// Bootstrap gives a server without state its first configuration. It must be the
// same on every server that is bootstrapped, and happen once in a cluster's life.
// It fails with kv.CodeConflict on a server that has state.
func (c *Consensus) Bootstrap(servers []kv.Server) error {
	ctx, cancel := context.WithTimeout(c.ctx, bootstrapTimeout)
	defer cancel()
	var conf raft.Configuration
	for _, s := range servers {
		suffrage := raft.Nonvoter
		if s.Voter {
			suffrage = raft.Voter
		}
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Addr), Suffrage: suffrage})
	}
	done := make(chan error, 1)
	go func() { done <- c.raft.BootstrapCluster(conf).Error() }()
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrCantBootstrap) {
			return kv.NotApplied(kv.CodeConflict, "this server already belongs to a cluster")
		}
		if err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
		return nil
	case <-ctx.Done():
		return kv.Unknown(context.Cause(ctx), "the first configuration was not stored in time")
	}
}

// AddNonvoter adds a server without a vote, or changes the address of one that is
// there (which keeps its vote). Like the other changes it needs this node to lead a
// term that is ready, waits for earlier changes, and returns once the change is
// committed; the error says whether it was not applied, or is unknown.
func (c *Consensus) AddNonvoter(ctx context.Context, id, addr string) error {
	return c.changeServer(ctx, id, addr, func(d time.Duration) raft.IndexFuture {
		return c.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, d)
	})
}

// AddVoter adds a server with a vote, gives a nonvoter its vote, or changes a
// voter's address. The vote counts at once: add a new server with AddNonvoter, and
// give it its vote once it has caught up.
func (c *Consensus) AddVoter(ctx context.Context, id, addr string) error {
	return c.changeServer(ctx, id, addr, func(d time.Duration) raft.IndexFuture {
		return c.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, d)
	})
}

// Demote takes a server's vote.
func (c *Consensus) Demote(ctx context.Context, id string) error {
	return c.changeServer(ctx, id, "", func(d time.Duration) raft.IndexFuture {
		return c.raft.DemoteVoter(raft.ServerID(id), 0, d)
	})
}

// Remove takes a server out of the configuration. A leader that removes itself
// steps down once that is committed.
func (c *Consensus) Remove(ctx context.Context, id string) error {
	return c.changeServer(ctx, id, "", func(d time.Duration) raft.IndexFuture {
		return c.raft.RemoveServer(raft.ServerID(id), 0, d)
	})
}

// changeServer makes one change of the configuration. addr is "" if the server must
// be there already.
func (c *Consensus) changeServer(ctx context.Context, id, addr string, change func(time.Duration) raft.IndexFuture) error {
	if _, err := c.waitReady(ctx); err != nil {
		return err
	}
	// raft reports what it refuses with errors that can't be told from a failed
	// disk, whose outcome is unknown: so ask first what it would refuse.
	if err := c.checkChange(id, addr); err != nil {
		return err
	}
	timeout := c.enqueueTimeout()
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Millisecond)
	}
	done := make(chan error, 1)
	go func() { done <- change(timeout).Error() }()
	select {
	case err := <-done:
		c.noteTransferState(err)
		return changeError(err)
	case <-ctx.Done():
		return changeError(context.Cause(ctx))
	case <-c.stopped:
		return changeError(errStopping)
	}
}

func changeError(err error) error {
	if err == nil || isNotApplied(err) {
		return proposalError(err)
	}
	return kv.Unknown(err, "the change of the configuration was proposed, but whether it was committed is not known; look at the members before trying again")
}

func (c *Consensus) checkChange(id, addr string) error {
	if id == "" || len(id) > maxNameBytes {
		return kv.NotApplied(kv.CodeInvalidArgument, "a server id must have 1 to %d bytes", maxNameBytes)
	}
	found, voters := false, 0
	var self kv.Server
	for _, s := range c.Configuration() {
		if s.Voter {
			voters++
		}
		if s.ID == id {
			found, self = true, s
		} else if addr != "" && s.Addr == addr {
			return kv.NotApplied(kv.CodeConflict, "address %s belongs to server %s; remove that one first", addr, s.ID)
		}
	}
	switch {
	case addr == "" && !found:
		return kv.NotApplied(kv.CodeNotFound, "server %s is not in the cluster's configuration", id)
	case addr == "" && self.Voter && voters == 1:
		return kv.NotApplied(kv.CodeConflict, "server %s is the only voter", id)
	}
	return nil
}
