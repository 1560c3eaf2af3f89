package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/settkv/sett/kv"
)

// lineKind is what a line of a watch is.
type lineKind uint8

const (
	lineEvent lineKind = iota + 1
	lineProgress
	lineRestored
	lineError
)

// watchLine is a line of a watch, read.
type watchLine struct {
	kind     lineKind
	revision kv.Revision
	event    *kv.Event
	// last says that the event is the last of its revision.
	last bool
	err  *kv.Error
}

// eventForm is the JSON of a line of a watch.
type eventForm struct {
	Type     string      `json:"type"`
	Revision kv.Revision `json:"revision"`
	form
	Previous *form `json:"previous"`
	Last     bool  `json:"last"`

	Code           kv.Code     `json:"code"`
	Detail         string      `json:"detail"`
	OldestRevision kv.Revision `json:"oldest_revision"`
}

func decodeWatchLine(data []byte) (watchLine, error) {
	var f eventForm
	if err := json.Unmarshal(data, &f); err != nil {
		return watchLine{}, err
	}
	l := watchLine{revision: f.Revision, last: f.Last}
	var kind kv.EventType
	switch f.Type {
	case "progress":
		l.kind = lineProgress
		return l, nil
	case "restored":
		l.kind = lineRestored
		return l, nil
	case "error":
		l.kind = lineError
		l.err = &kv.Error{Code: f.Code, Msg: f.Detail, OldestRevision: f.OldestRevision}
		return l, nil
	case kv.EventPut.String():
		kind = kv.EventPut
	case kv.EventDelete.String():
		kind = kv.EventDelete
	case kv.EventExpire.String():
		kind = kv.EventExpire
	default:
		return l, fmt.Errorf("type %q", f.Type)
	}
	if !f.named() || f.Revision == 0 {
		return l, fmt.Errorf("an event without its key or revision")
	}
	l.kind = lineEvent
	l.event = &kv.Event{Type: kind, Revision: f.Revision, Item: f.form.item()}
	if kind != kv.EventPut {
		l.event.Item = kv.Item{Key: l.event.Item.Key}
	}
	if f.Previous != nil {
		previous := f.Previous.item()
		l.event.Previous = &previous
	}
	return l, nil
}

// EncodeBatch returns a batch of a watch with these options as the HTTP API tells it: a
// line an event, or one of progress if there is none.
func EncodeBatch(b kv.WatchBatch, o WatchOptions) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if len(b.Events) == 0 {
		err := enc.Encode(struct {
			Type     string      `json:"type"`
			Revision kv.Revision `json:"revision"`
		}{"progress", b.Revision})
		return out.Bytes(), err
	}
	for i, e := range b.Events {
		f := formOf(e.Item)
		line := struct {
			Type           string          `json:"type"`
			Revision       kv.Revision     `json:"revision"`
			Key            *string         `json:"key,omitempty"`
			KeyBase64      []byte          `json:"key_base64,omitempty"`
			Value          *string         `json:"value,omitempty"`
			ValueBase64    []byte          `json:"value_base64,omitempty"`
			CreateRevision kv.Revision     `json:"create_revision,omitempty"`
			ModRevision    kv.Revision     `json:"mod_revision"`
			Version        uint64          `json:"version,omitempty"`
			ContentType    string          `json:"content_type,omitempty"`
			ExpiresAt      time.Time       `json:"expires_at,omitzero"`
			Previous       json.RawMessage `json:"previous,omitempty"`
			Last           bool            `json:"last,omitempty"`
		}{Type: e.Type.String(), Revision: e.Revision, Key: f.Key, KeyBase64: f.KeyBase64, ModRevision: e.Revision}
		if e.Type == kv.EventPut {
			line.Value, line.ValueBase64, line.CreateRevision = f.Value, f.ValueBase64, f.CreateRevision
			line.Version, line.ContentType, line.ExpiresAt = f.Version, f.ContentType, f.ExpiresAt
		}
		if o.Previous {
			line.Previous = json.RawMessage("null")
			if e.Previous != nil {
				var err error
				if line.Previous, err = EncodeItem(*e.Previous); err != nil {
					return nil, err
				}
			}
		}
		line.Last = i == len(b.Events)-1
		if err := enc.Encode(line); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
