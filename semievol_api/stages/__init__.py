"""One file per stage of the method, one public function each."""
