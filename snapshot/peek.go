package snapshot

import (
	"fmt"
	"path/filepath"
)

// PeekLabel reads the label of the current generation in a store's folder without
// opening anything; found is false if there is none.
func PeekLabel(dir string) (l Label, found bool, err error) {
	name, found, err := readCurrent(dir)
	if err != nil || !found {
		return Label{}, false, err
	}
	if l, found, err = ReadLabel(filepath.Join(dir, name)); err != nil {
		return Label{}, false, fmt.Errorf("peek at the label: %w", err)
	}
	return l, found, nil
}
