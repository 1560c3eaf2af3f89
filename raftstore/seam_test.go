package raftstore

import "github.com/hashicorp/raft"

// hooked stands between this layer and a BadgerStore: before may fail or delay a call, afterDelete sees
// each finished deletion.
type hooked struct {
	inner
	before      func(call string) error
	afterDelete func(lo, hi uint64)
}

func (h *hooked) check(call string) error {
	if h.before == nil {
		return nil
	}
	return h.before(call)
}

func (h *hooked) GetLog(index uint64, log *raft.Log) error {
	if err := h.check("get"); err != nil {
		return err
	}
	return h.inner.GetLog(index, log)
}

func (h *hooked) StoreLogs(logs []*raft.Log) error {
	if err := h.check("append"); err != nil {
		return err
	}
	return h.inner.StoreLogs(logs)
}

func (h *hooked) DeleteRange(lo, hi uint64) error {
	if err := h.check("delete"); err != nil {
		return err
	}
	if err := h.inner.DeleteRange(lo, hi); err != nil {
		return err
	}
	if h.afterDelete != nil {
		h.afterDelete(lo, hi)
	}
	return nil
}

func (h *hooked) Set(key, val []byte) error {
	if err := h.check("set"); err != nil {
		return err
	}
	return h.inner.Set(key, val)
}

func (h *hooked) Get(key []byte) ([]byte, error) {
	if err := h.check("get"); err != nil {
		return nil, err
	}
	return h.inner.Get(key)
}
