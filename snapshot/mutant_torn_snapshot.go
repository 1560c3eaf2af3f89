package snapshot

import (
	"bytes"

	"github.com/settkv/sett/engine"
)

// tornExporter is what mutantTornSnapshot streams: the first half of the records as
// of one revision, the keys after them as of a later one, as Badger's own Backup does
// under writes. Nothing else uses it.
type tornExporter struct{ older, newer exporter }

func (t tornExporter) Export(floor uint64, fn func(engine.Record) error) error {
	total := 0
	err := t.older.Export(floor, func(engine.Record) error { total++; return nil })
	if err != nil {
		return err
	}
	n := 0
	var last []byte
	err = t.older.Export(floor, func(r engine.Record) error {
		if n++; n > total/2 && !bytes.Equal(r.Key, last) {
			return nil
		}
		last = append(last[:0], r.Key...)
		return fn(r)
	})
	if err != nil {
		return err
	}
	return t.newer.Export(floor, func(r engine.Record) error {
		if bytes.Compare(r.Key, last) <= 0 {
			return nil
		}
		return fn(r)
	})
}
