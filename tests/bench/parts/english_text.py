"""A text of no data set, written for this project: what a model makes of plain English."""

ENGLISH = (
    "The ferry leaves the harbour at seven in the morning, when the light is still grey and the gulls "
    "have not yet begun to quarrel over the fishing boats. Most of the passengers know each other. They "
    "carry baskets, tools and newspapers, and they talk about the weather as if it were a neighbour who "
    "had moved in last spring and could not be trusted. By the time the boat has passed the lighthouse, "
    "the first cups of tea are empty and somebody has opened a window.",
    "A good bridge is a quiet argument with gravity. The engineer who built ours wrote in a letter that "
    "she had spent two years choosing the place and only three months drawing the arch. She measured the "
    "river in flood and in drought, asked the farmers where the ice had broken through, and noted which "
    "of the old piers had been repaired most often. What she learned from them saved the town a great "
    "deal of stone.",
    "If you want to bake bread in a cold kitchen, start the evening before. Mix the flour with water, a "
    "little salt and very little yeast, cover the bowl with a cloth and leave it alone. In the morning "
    "the dough will have doubled, and it will be full of small bubbles. Fold it twice, let it rest while "
    "the oven gets hot, and bake it until the crust sounds hollow when you knock on it. It keeps for four "
    "days, though it seldom has to.",
    "Nobody in the family could say when the clock had stopped. It had stood in the hall since before the "
    "war, and its ticking had been so much a part of the house that its silence went unnoticed for weeks. "
    "When my uncle finally opened the case, he found a folded note between the weights. It said, in my "
    "grandmother's hand, that the clock was to be wound on Sundays by whoever had been kindest during the "
    "week, and that she trusted them to decide it fairly.",
)
